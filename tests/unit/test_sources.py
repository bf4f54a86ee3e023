"""Where images come from."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests

from dcnzoo import sources
from dcnzoo.errors import ImageReadError, SourceError
from dcnzoo.evaluation.report import product_names
from dcnzoo.run_folder import pictures_in
from dcnzoo.sources import ImageSource, check_sources, find_images, local_path, read_image
from dcnzoo.training.history import CURVES
from dcnzoo.writers import CropWriter, ImageWriter
from tests.http_server import content, serving, status
from tests.pictures import noise, patches, save


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with images, other files, and hidden ones."""
    names = [
        "b.jpg",
        "a.PNG",
        "sub/c.webp",
        "sub/deep/d.tif",
        "sub.jpg",
        "notes.md",
        ".hidden.jpg",
        ".git/e.jpg",
    ]
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*arguments: object, **options: object) -> list[str]:
    return [str(image.name) for image in find_images(*arguments, **options)]


def locations(*arguments: object) -> list[str]:
    return [image.location for image in find_images(*arguments)]


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))


@pytest.mark.usefixtures("tree")
class TestFolder:
    def test_recursive_sorted_images_only(self) -> None:
        assert names(["photos"]) == ["a.PNG", "b.jpg", "sub.jpg", "sub/c.webp", "sub/deep/d.tif"]
        assert locations(["photos"])[3] == str(Path("photos/sub/c.webp"))

    def test_several_folders_keep_their_names(self) -> None:
        assert names(["photos/sub/deep", "photos/sub"]) == ["deep/d.tif", "sub/c.webp", "sub/deep/d.tif"]

    def test_a_file_beside_a_folder_adds_no_prefix(self) -> None:
        assert names(["photos/b.jpg", "photos/sub/deep"]) == ["b.jpg", "d.tif"]

    def test_the_current_folder_has_a_name_too(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tree / "photos" / "sub" / "deep")
        assert names([".", ".."]) == ["deep/d.tif", "sub/c.webp", "sub/deep/d.tif"]

    def test_excluded_folder_is_not_searched(self) -> None:
        assert names(["photos"], exclude=[Path("photos/sub")]) == ["a.PNG", "b.jpg", "sub.jpg"]

    def test_linked_folders_are_not_followed(self, tree: Path) -> None:
        (tree / "photos" / "sub" / "loop").symlink_to(tree / "photos")
        assert len(names(["photos"])) == 5

    def test_is_lazy(self, tree: Path) -> None:
        images = find_images(["photos"])
        next(images)
        (tree / "photos" / "sub" / "new.jpg").touch()
        assert "sub/new.jpg" in [str(image.name) for image in images]

    def test_that_cannot_be_listed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", refuse)
        with pytest.raises(SourceError, match="cannot list folder photos: Permission denied"):
            names(["photos"])


@pytest.mark.usefixtures("tree")
class TestGlob:
    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("photos/*.jpg", ["b.jpg", "sub.jpg"]),
            ("photos/*", ["a.PNG", "b.jpg", "sub.jpg"]),
            ("photos/[ab].*", ["a.PNG", "b.jpg"]),
            ("photos/**/*.tif", ["sub/deep/d.tif"]),
            ("photos/*/*.webp", ["sub/c.webp"]),
            ("p*/s?b.jpg", ["photos/sub.jpg"]),
        ],
    )
    def test_matches(self, tree: Path, pattern: str, expected: list[str]) -> None:
        assert names([pattern]) == expected
        assert names([str(tree / pattern)]) == expected

    def test_excluded_folder(self) -> None:
        assert names(["photos/*.jpg"], exclude=[Path("photos/sub")]) == ["b.jpg", "sub.jpg"]
        with pytest.raises(SourceError):
            names(["photos/**/*.tif"], exclude=[Path("photos/sub")])

    def test_a_file_with_brackets_in_its_name_is_a_file(self, tree: Path) -> None:
        (tree / "photo[1].jpg").touch()
        assert names(["photo[1].jpg"]) == ["photo[1].jpg"]


@pytest.mark.usefixtures("tree")
class TestPicturesOfEarlierRuns:
    @pytest.fixture(autouse=True)
    def runs(self, tree: Path) -> None:
        sources._warn_of_drawn.cache_clear()
        made = {
            "predict": ["images/a.jpg", "images/sub/c.jpg", "crops/dog/a-000.jpg", "mine.jpg"],
            "eval": ["precision_recall.bbox.png", "images/mine.jpg"],
            "train": ["curves.png", "images/mine.jpg"],
            "none": ["images/mine.jpg"],
        }
        for program, files in made.items():
            for name in files:
                path = tree / "photos" / program / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            note = {"program": f"dcnzoo {program}"} if program != "none" else ["no note"]
            (tree / "photos" / program / "run.json").write_text(json.dumps(note))

    MINE = ("eval/images/mine.jpg", "none/images/mine.jpg", "predict/mine.jpg", "train/images/mine.jpg")

    @pytest.mark.parametrize("source", ["photos", "photos/**/*.*"])
    def test_are_left_out(self, source: str, caplog: pytest.LogCaptureFixture) -> None:
        found = names([source])
        assert sorted(found) == sorted(
            [*self.MINE, "a.PNG", "b.jpg", "sub.jpg", "sub/c.webp", "sub/deep/d.tif"]
        )
        assert names([source]) == found
        (record,) = caplog.records
        assert record.getMessage() == (
            "left out, for earlier runs have made them: photos/eval/precision_recall.bbox.png and 3 more;"
            " name one as a source to have it searched"
        )

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            ("photos/predict", ["mine.jpg"]),
            ("photos/predict/images", ["a.jpg", "sub/c.jpg"]),
            ("photos/predict/images/**/*.jpg", ["a.jpg", "sub/c.jpg"]),
            ("photos/*/crops/*/*.jpg", ["predict/crops/dog/a-000.jpg"]),
            ("photos/train/curves.png", ["curves.png"]),
        ],
    )
    def test_that_are_named(self, source: str, expected: list[str]) -> None:
        assert names([source]) == expected

    def test_of_this_run_are_not_worth_a_word(self, caplog: pytest.LogCaptureFixture) -> None:
        own = [Path("photos/predict", name) for name in ("images", "crops")]
        assert names(["photos/predict"], exclude=own) == ["mine.jpg"]
        assert caplog.records == []

    def test_names_are_those_of_the_writers(self) -> None:
        assert pictures_in(Path("photos/predict")) == (ImageWriter.product, CropWriter.product)
        assert pictures_in(Path("photos/train")) == (CURVES,)
        products = {name for name in product_names() if name.endswith(".png")}
        assert set(pictures_in(Path("photos/eval"))) == products


@pytest.mark.usefixtures("tree")
class TestList:
    def test_lines(self, tree: Path) -> None:
        outside = tree.parent / "elsewhere.png"
        lines = [
            "\ufeffphotos/b.jpg\r",
            "",
            f"{outside}",
            "http://host/x/photo%201.jpg?size=2",
            "missing.jpg",
            "",
        ]
        (tree / "list.txt").write_text("\n".join(lines), encoding="utf-8")
        assert list(find_images(["list.txt"])) == [
            ImageSource("photos/b.jpg", sources.PurePosixPath("photos/b.jpg")),
            ImageSource(str(outside), sources.PurePosixPath(str(outside).lstrip("/"))),
            ImageSource("http://host/x/photo%201.jpg?size=2", sources.PurePosixPath("photo_1.jpg")),
            ImageSource("missing.jpg", sources.PurePosixPath("missing.jpg")),
        ]

    def test_comments_and_blank_lines_are_skipped(self, tree: Path) -> None:
        (tree / "#1.jpg").touch()
        text = "\ufeff# from camera 2\n#1.jpg\n  \t\r\n./#1.jpg\na#b.jpg\n #2.jpg\n#"
        (tree / "list.txt").write_text(text, encoding="utf-8")
        assert locations(["list.txt"]) == ["#1.jpg", "a#b.jpg", " #2.jpg"]

    def test_standard_input_has_no_comments(self, monkeypatch: pytest.MonkeyPatch) -> None:
        feed(monkeypatch, b"#1.jpg\n\n \nb.jpg\n")
        assert locations(["-"]) == ["#1.jpg", "b.jpg"]

    def test_lines_are_relative_to_the_list_if_not_to_the_working_directory(self, tree: Path) -> None:
        (tree / "photos" / "list.txt").write_text("b.jpg\nsub/c.webp\nphotos/a.PNG\n")
        assert locations(["photos/list.txt"]) == ["photos/b.jpg", "photos/sub/c.webp", "photos/a.PNG"]

    def test_no_name_leaves_its_root(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tree / "photos" / "sub")
        feed(
            monkeypatch, b"../b.jpg\n../../../../x.jpg\nhttp://host/..%2f..%2fetc%2fpasswd\nhttp://host/..\n"
        )
        found = names(["-"])
        assert found[0] == f"{str(tree).lstrip('/')}/photos/b.jpg"
        assert found[2:] == ["_.._etc_passwd", "image"]
        assert not any(name.startswith("/") or ".." in name.split("/") for name in found)

    def test_lines_that_name_no_image(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are found like others, and fail when they are read."""
        monkeypatch.chdir(tree / "photos")
        feed(monkeypatch, b".\nhttp://[oops/x.jpg\n/\nb.jpg\n")
        found = list(find_images(["-"]))
        assert [str(each.name) for each in found] == [
            str(tree / "photos").lstrip("/"),
            "image",
            "image",
            "b.jpg",
        ]
        for source in found[:3]:
            with pytest.raises(ImageReadError):
                read_image(source.location)

    def test_a_name_in_any_encoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        feed(monkeypatch, b"caf\xe9.jpg\n")
        assert os.fsencode(locations(["-"])[0]) == b"caf\xe9.jpg"

    def test_a_name_too_long_for_the_system(self, monkeypatch: pytest.MonkeyPatch) -> None:
        feed(monkeypatch, b"x" * 5000 + b".jpg\n")
        assert len(locations(["-"])) == 1

    def test_not_text(self, tree: Path) -> None:
        (tree / "list.txt").write_bytes(b"\x89PNG\0\0\0")
        with pytest.raises(SourceError, match="must be text"):
            names(["list.txt"])

    def test_standard_input_is_read_as_it_comes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = []

        def lines():
            for number in range(1000):
                taken.append(number)
                yield b"%d.jpg\n" % number

        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines()))
        next(find_images(["-"]))
        assert len(taken) <= 2


class TestFileAddress:
    @pytest.mark.parametrize(
        ("location", "path"),
        [
            ("file:///photos/a.jpg", "/photos/a.jpg"),
            ("FILE://localhost/photos/a.jpg", "/photos/a.jpg"),
            ("file:/photos/a%20b%231.jpg", "/photos/a b#1.jpg"),
            ("file:///photos/a#1?.jpg", "/photos/a#1?.jpg"),
            ("file:///caf%E9.jpg", os.fsdecode(b"/caf\xe9.jpg")),
            ("file:///caf\udce9.jpg", os.fsdecode(b"/caf\xe9.jpg")),
            ("file://server/photos/a.jpg", "file://server/photos/a.jpg"),
            ("file:a.jpg", "file:a.jpg"),
            ("/photos/100%25.jpg", "/photos/100%25.jpg"),
        ],
    )
    def test_path(self, location: str, path: str) -> None:
        assert local_path(location) == path

    def test_is_the_same_as_the_path(self, tree: Path) -> None:
        (tree / "list.txt").write_text(f"{(tree / 'photos' / 'b.jpg').as_uri()}\n")
        for source in (tree / "photos", tree / "photos" / "b.jpg"):
            assert list(find_images([source.as_uri()])) == list(find_images([str(source)]))
        assert names(["list.txt"]) == ["photos/b.jpg"]

    def test_is_read(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a b.png", noise(8, 9))
        assert np.array_equal(read_image(path.as_uri()), read_image(path))

    @pytest.mark.parametrize("address", ["file:///missing.jpg", "file://server/a.jpg", "file:///a%00b.jpg"])
    def test_of_nothing(self, address: str) -> None:
        with pytest.raises(SourceError, match="no such file or folder"):
            check_sources([address])
        with pytest.raises(ImageReadError):
            read_image(address)


class TestProblems:
    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("missing.jpg", "no such file or folder: missing.jpg"),
            ("missing/", "no such file or folder"),
            ("photos/*.bmp", r"no images in photos/\*.bmp"),
            ("empty", "no images in empty"),
            ("empty.txt", "no images in empty.txt"),
            pytest.param("x" * 5000, "no such file or folder", id="name too long"),
        ],
    )
    def test_found_before_any_image_is_read(self, tree: Path, source: str, message: str) -> None:
        (tree / "empty").mkdir()
        (tree / "empty.txt").write_text("\n# nothing yet\n")
        with pytest.raises(SourceError, match=message):
            check_sources(["photos", source])

    def test_standard_input_is_not_touched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        check_sources(["-", "http://host/a.jpg"])

    def test_empty_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        feed(monkeypatch, b"\n")
        with pytest.raises(SourceError, match="no images in standard input"):
            names(["-"])
        with pytest.raises(SourceError, match="no images in standard input"):
            names(["-", "-"])

    @pytest.mark.parametrize("others", [["a.jpg", "-"], ["-", "a.jpg"], ["-", "a.jpg", "-"]])
    def test_empty_standard_input_beside_others(
        self,
        tree: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        others: list[str],
    ) -> None:
        (tree / "a.jpg").touch()
        feed(monkeypatch, b"")
        images = find_images(others)
        assert next(images).location == "a.jpg"
        assert caplog.text == ""
        assert list(images) == []
        assert caplog.text.count("nothing came from standard input") == 1


class TestAddress:
    @pytest.fixture
    def png(self, tmp_path: Path) -> bytes:
        return save(tmp_path / "a.png", patches()).read_bytes()

    def test_fetched_and_decoded(self, png: bytes) -> None:
        with serving({"/a.png": content(png)}) as server:
            np.testing.assert_array_equal(read_image(server.url("/a.png")), patches())

    def test_redirect(self, png: bytes) -> None:
        with serving({"/b": status(302, Location="/a.png"), "/a.png": content(png)}) as server:
            assert read_image(server.url("/b")).shape == patches().shape

    @pytest.mark.parametrize(
        ("path", "reason"),
        [
            ("/missing", "the server answered 404 Not Found"),
            ("/broken", "the server answered 500"),
            ("/page", "not an image"),
            ("/empty", "the file is empty"),
            ("/cut", "IncompleteRead|ConnectionError|ChunkedEncodingError"),
        ],
    )
    def test_failures_say_why(self, png: bytes, path: str, reason: str) -> None:
        answers = {
            "/broken": status(500),
            "/page": content(b"<html>"),
            "/empty": content(b""),
            "/cut": content(png[:50], announced=len(png)),
        }
        with serving(answers) as server, pytest.raises(ImageReadError, match=reason) as caught:
            read_image(server.url(path))
        assert caught.value.source == server.url(path)

    def test_nobody_answers(self) -> None:
        with serving({}) as server:
            url = server.url("/a.png")
        with pytest.raises(ImageReadError, match="ConnectionError"):
            read_image(url)

    def test_endless_answer_is_cut_off(self, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sources, "MAX_DOWNLOAD_BYTES", 10)
        with serving({"/a": content(png)}) as server, pytest.raises(ImageReadError, match="larger than"):
            read_image(server.url("/a"))

    def test_stalled_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def stall(*arguments: object, timeout: float, **options: object) -> None:
            raise requests.ReadTimeout(f"no answer in {timeout} s")

        monkeypatch.setattr(requests, "get", stall)
        with pytest.raises(ImageReadError, match="ReadTimeout: no answer in 30 s"):
            read_image("http://host/a.jpg")
