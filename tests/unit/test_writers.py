"""Output formats, and the folder that they go to."""

from __future__ import annotations

import csv
import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from dcnzoo.errors import ImageReadError, OutputError, SourceError
from dcnzoo.image import decode_image
from dcnzoo.results import Detections
from dcnzoo.run_folder import read_note
from dcnzoo.sources import ImageSource
from dcnzoo.writers import (
    JOURNAL,
    PRODUCTS,
    WRITERS,
    CropWriter,
    ErrorLog,
    ImageIds,
    ImageResult,
    ImageWriter,
    Listing,
    Progress,
    Stems,
    Writer,
    read_journal,
)
from dcnzoo.writers.folder import OutputFolder, output_errors
from dcnzoo.writers.growing import GrowingFile, Layout, join_files, json_elements, json_list
from dcnzoo.writers.journal import DoneImage, Journal
from dcnzoo.writers.whole import write_whole

FOUND = Detections(
    boxes=np.array([[8, 12, 24, 36], [0.1234567, 0, 80, 60]], np.float32),
    scores=np.array([0.9, 1 / 3], np.float32),
    labels=np.array([2, 0]),
    class_names=("person", "traffic light", "dog"),
    category_ids=(1, 10, 18),
    image_size=(60, 80),
)
ROWS, COLUMNS = np.mgrid[:60, :80]
PIXELS = np.dstack([ROWS * 4, COLUMNS * 3, COLUMNS * 0]).astype(np.uint8)  # smooth: JPEG keeps it
RLES = tuple({"size": [60, 80], "counts": counts} for counts in ("PPYo1", "0PPYo1"))


def result(name: str = "a.jpg", found: Detections = FOUND, image_id: int = 7) -> ImageResult:
    source = ImageSource(f"photos/{name}", PurePosixPath(name))
    return ImageResult(source, found, found.above(0.3), PIXELS, image_id, name.rpartition(".")[0])


def write(writer: type[Writer], out: Path, *results: ImageResult) -> Path:
    with writer(out) as opened:
        for one in results:
            opened.write(one)
    return out / writer.product


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestJsonl:
    def test_one_line_per_image(self, tmp_path: Path) -> None:
        path = write(WRITERS["jsonl"], tmp_path, result(), result("b.jpg", FOUND[:0]))
        first, second = (json.loads(line) for line in path.read_text().splitlines())
        assert first == {
            "image": "photos/a.jpg",
            "width": 80,
            "height": 60,
            "detections": [
                {"class": "dog", "label": 2, "category_id": 18, "score": 0.9, "box": [8, 12, 24, 36]},
                {
                    "class": "person",
                    "label": 0,
                    "category_id": 1,
                    "score": 0.333333,
                    "box": [0.123, 0, 80, 60],
                },
            ],
        }
        assert second["detections"] == []

    def test_masks(self, tmp_path: Path) -> None:
        path = write(WRITERS["jsonl"], tmp_path, result(found=replace(FOUND, rles=RLES)))
        assert [found["mask"] for found in json.loads(path.read_text())["detections"]] == list(RLES)

    def test_lines_are_on_disk_at_once(self, tmp_path: Path) -> None:
        with WRITERS["jsonl"](tmp_path) as writer:
            writer.write(result())
            assert json.loads((tmp_path / "detections.jsonl").read_text())["image"] == "photos/a.jpg"


class TestCsv:
    def test_one_row_per_detection(self, tmp_path: Path) -> None:
        odd = result('we,ird "name".jpg')
        path = write(WRITERS["csv"], tmp_path, odd, result("b.jpg", FOUND[:0]), result("c.jpg", FOUND[:1]))
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["image"] for row in rows] == [odd.source.location] * 2 + ["photos/c.jpg"]
        expected = ["80", "60", "person", "0", "1", "0.333333", "0.123", "0.0", "80.0", "60.0"]
        assert list(rows[1].values())[1:] == expected

    def test_a_path_that_is_no_utf8(self, tmp_path: Path) -> None:
        path = write(WRITERS["csv"], tmp_path, result("caf\udce9.jpg"))
        assert b"caf\xe9.jpg,80" in path.read_bytes()


class TestYolo:
    def test_relative_centre_and_size(self, tmp_path: Path) -> None:
        folder = write(WRITERS["yolo"], tmp_path, result("sub/a.jpg"), result("b.jpg", FOUND[:0]))
        assert files(folder) == ["b.txt", "sub/a.txt"]
        first = (folder / "sub" / "a.txt").read_text().splitlines()[0]
        assert first == "2 0.200000 0.400000 0.200000 0.400000 0.900000"
        assert (folder / "b.txt").read_text() == ""

    def test_class_list(self, tmp_path: Path) -> None:
        write(WRITERS["yolo"], tmp_path, result())
        assert (tmp_path / "classes.txt").read_text() == "person\ntraffic light\ndog\n"

    def test_a_class_is_one_line(self, tmp_path: Path) -> None:
        odd = replace(FOUND, class_names=("per\nson", "traffic\r\u2028light", "\ud800\x00g"))
        write(WRITERS["yolo"], tmp_path, result(found=odd))
        assert (tmp_path / "classes.txt").read_text().splitlines() == ["per son", "traffic  light", "  g"]


class TestStems:
    def test_no_two_images_have_the_same(self, caplog: pytest.LogCaptureFixture) -> None:
        stems = Stems()
        names = ("a.jpg", "a.png", "a.jpg", "a.png", "b/a.jpg", "a.png.jpg", "c.d.jpg")
        found = [stems.find(ImageSource(name, PurePosixPath(name))) for name in names]
        assert found == ["a", "a.png", "a.jpg", "a.png-2", "b/a", "a.png.jpg", "c.d"]
        assert len(caplog.messages) == 4
        assert "results of a.png go to a.png" in caplog.messages[0]

    @pytest.mark.parametrize("writer", [WRITERS["yolo"], ImageWriter, CropWriter])
    def test_every_name_can_be_written(self, tmp_path: Path, writer: type[Writer]) -> None:
        long = ("x" * 249, "x" * 251, "\u4e2d" * 83)
        names = [f"{name}.jpg" for name in long]
        names += ["a.jpg", "a.txt/b.jpg", "a.png", "a.jpg/b.jpg", "c-000.jpg/b.jpg", "c.jpg", ".part/a.jpg"]
        stems = Stems()
        for name in names:
            stem = stems.find(ImageSource(name, PurePosixPath(name)))
            write(writer, tmp_path, replace(result(), stem=stem))
        assert len(files(tmp_path / writer.product)) == len(names) * (1 + (writer is CropWriter))

    def test_those_taken_before_stay_taken(self) -> None:
        assert Stems(["a", "a.jpg"]).find(ImageSource("a.jpg", PurePosixPath("a.jpg"))) == "a.jpg-2"


class TestDiscard:
    """What a killed run has left goes, and what counts stays."""

    NAMES = ("a.jpg", "a.b.jpg", "sub/a.jpg", "c-001.jpg")

    @pytest.mark.parametrize(
        ("writer", "kept"),
        [
            (WRITERS["yolo"], ["a.b.txt", "c-001.txt"]),
            (ImageWriter, ["a.b.jpg", "c-001.jpg"]),
            (
                CropWriter,
                [
                    f"{name}/{stem}"
                    for name, stem in product(("dog", "person"), ("a.b-{}.jpg", "c-001-{}.jpg"))
                ],
            ),
        ],
    )
    def test_by_image(self, tmp_path: Path, writer: type[Writer], kept: list[str]) -> None:
        folder = write(writer, tmp_path, *map(result, self.NAMES))
        (folder / ".part").write_bytes(b"half")
        with writer(tmp_path) as opened:
            opened.discard({"a", "sub/a", "d"})
        ranks = {"dog": "000", "person": "001"}
        assert files(folder) == sorted(name.format(ranks.get(name.partition("/")[0])) for name in kept)
        assert "sub" not in [path.name for path in folder.rglob("*")]

    @pytest.mark.parametrize("writer", [WRITERS["yolo"], ImageWriter, CropWriter])
    def test_nothing_of_the_users(self, tmp_path: Path, writer: type[Writer]) -> None:
        folder = write(writer, tmp_path, result("a.jpg"))
        mine = ["a.json", "b.txt", "b.jpg", "dog/a.png", "dog/b-000.jpg", "mine/notes.txt"]
        for name in mine:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).touch()
        with writer(tmp_path) as opened:
            opened.discard({"a"})
        assert files(folder) == sorted(mine)


class TestCoco:
    def test_results_and_images(self, tmp_path: Path) -> None:
        results = (result(image_id=7), result("b.jpg", FOUND[:0], 8), result("c.jpg", FOUND[:1], 9))
        path = write(WRITERS["coco"], tmp_path, *results)
        assert json.loads(path.read_text()) == FOUND.to_coco(7) + FOUND[:1].to_coco(9)
        assert json.loads((tmp_path / "images.json").read_text())["images"] == [
            {"id": number, "file_name": f"photos/{name}.jpg", "width": 80, "height": 60}
            for number, name in ((7, "a"), (8, "b"), (9, "c"))
        ]

    def test_nothing_found_is_an_empty_list(self, tmp_path: Path) -> None:
        assert json.loads(write(WRITERS["coco"], tmp_path).read_text()) == []

    def test_valid_after_every_image(self, tmp_path: Path) -> None:
        with WRITERS["coco"](tmp_path) as writer:
            for count in range(1, 4):
                writer.write(result(image_id=count))
                assert len(json.loads((tmp_path / "detections.coco.json").read_text())) == 2 * count
                assert len(json.loads((tmp_path / "images.json").read_text())["images"]) == count


class TestImageIds:
    @staticmethod
    def ids(*names: str, annotations: Path | None = None) -> list[int | None]:
        numbering = ImageIds(annotations)
        return [numbering.find(ImageSource(name, PurePosixPath(name))) for name in names]

    def test_numeric_names(self) -> None:
        assert self.ids("000000000785.jpg", "sub/12.png") == [785, 12]

    def test_other_names_get_free_numbers(self) -> None:
        assert self.ids("a.jpg", "2.jpg", "b.jpg", "c.jpg") == [1, 2, 3, 4]

    def test_no_number_is_used_twice(self) -> None:
        names = ("1.jpg", "1.png", "x/1.jpg", "2.jpg", "a.jpg", "0.jpg", "\u0663.jpg", f"{10**30}.jpg")
        assert self.ids(*names) == [1, 2, 3, 4, 5, 0, 6, 7]

    def test_a_set_that_counts_from_0(self) -> None:
        assert self.ids("0.jpg", "1.jpg", "2.jpg", "x/0.jpg", "x/00.jpg") == [0, 1, 2, 3, 4]

    @staticmethod
    def annotations(folder: Path) -> Path:
        images = [{"id": 5, "file_name": "a.jpg"}, {"id": 6, "file_name": "val/b.jpg"}]
        path = folder / "annotations.json"
        path.write_text(json.dumps({"images": images}))
        return path

    def test_annotations(self, tmp_path: Path) -> None:
        names = ("x/a.jpg", "val/b.jpg", "b.jpg", "c.jpg")
        assert self.ids(*names, annotations=self.annotations(tmp_path)) == [5, 6, None, None]

    def test_a_file_name_finds_a_path_that_alone_ends_so(self, tmp_path: Path) -> None:
        names = ("a.jpg", "x/b.jpg", "c.jpg", "x/c.jpg")
        listed = ("images/a.jpg", "b.jpg", "y/b.jpg", "x/c.jpg", "y/c.jpg")
        images = [{"id": number, "file_name": name} for number, name in enumerate(listed)]
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps({"images": images}))
        assert self.ids(*names, annotations=path) == [0, 1, None, 3]

    def test_no_annotated_id_is_given_twice(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        found = self.ids("x/a.jpg", "y/a.jpg", annotations=self.annotations(tmp_path))
        assert found == [5, None]
        assert caplog.messages == ["leaving out y/a.jpg: another image has its id 5"]

    def test_a_path_comes_before_a_file_name(self, tmp_path: Path) -> None:
        numbering = ImageIds(self.annotations(tmp_path), by_path={5})
        sources = [ImageSource(name, PurePosixPath(name)) for name in ("x/a.jpg", "a.jpg")]
        assert [numbering.find(source) for source in sources] == [None, 5]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "cannot read"),
            ("{", "no COCO"),
            ("[]", "no COCO"),
            ('{"images": [{"id": 1}]}', "file_name"),
            ('{"images": [{"id": Infinity, "file_name": "a"}]}', "OverflowError"),
            ("[" * 100_000, "RecursionError"),
        ],
    )
    def test_bad_annotations(self, tmp_path: Path, content: str | None, message: str) -> None:
        path = tmp_path / "annotations.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(SourceError, match=message):
            ImageIds(path)


class TestPictures:
    def test_annotated_images(self, tmp_path: Path) -> None:
        folder = write(ImageWriter, tmp_path, result("sub/a.png"), result("b.jpg", FOUND[:0]))
        assert files(folder) == ["b.jpg", "sub/a.jpg"]
        plain, drawn = (decode_image(folder / name).astype(int) for name in ("b.jpg", "sub/a.jpg"))
        np.testing.assert_allclose(plain, PIXELS, atol=12)
        assert np.abs(drawn - PIXELS).max() > 60

    def test_only_drawn_detections(self, tmp_path: Path) -> None:
        faint = replace(FOUND, scores=np.array([0.2, 0.1], np.float32))
        write(ImageWriter, tmp_path, result("a.jpg", faint), result("b.jpg", FOUND[:0]))
        a, b = ((tmp_path / "images" / f"{name}.jpg").read_bytes() for name in "ab")
        assert a == b

    def test_crops_have_the_size_of_their_box(self, tmp_path: Path) -> None:
        folder = write(CropWriter, tmp_path, result("sub/a.jpg"))
        assert files(folder) == ["dog/sub/a-000.jpg", "person/sub/a-001.jpg"]
        crop = decode_image(folder / "dog" / "sub" / "a-000.jpg")
        np.testing.assert_allclose(crop.astype(int), PIXELS[12:36, 8:24], atol=12)

    def test_boxes_at_the_border_give_a_pixel(self, tmp_path: Path) -> None:
        boxes = np.array([[80, 60, 80, 60], [79.5, 10, 79.6, 10]], np.float32)
        folder = write(CropWriter, tmp_path, result(found=replace(FOUND, boxes=boxes)))
        assert [decode_image(folder / name).shape for name in files(folder)] == [(1, 1, 3), (1, 1, 3)]

    @pytest.mark.parametrize("writer", [ImageWriter, CropWriter])
    def test_too_large_for_a_jpeg(self, tmp_path: Path, writer: type[Writer]) -> None:
        box = np.array([[0, 0, 70_000, 2]], np.float32)
        wide = replace(FOUND[:1], boxes=box, image_size=(2, 70_000))
        pixels = np.zeros((2, 70_000, 3), np.uint8)
        folder = write(writer, tmp_path, replace(result(found=wide), pixels=pixels))
        (name,) = files(folder)
        assert decode_image(folder / name).shape == (2, 65_500, 3)

    @pytest.mark.parametrize("name", ["../../etc", "/root", "a/b", "..", "", "x" * 400, "\u4e2d" * 100, "\0"])
    def test_a_class_name_never_leaves_the_folder(self, tmp_path: Path, name: str) -> None:
        odd = replace(FOUND, class_names=(name, "b", name))
        write(CropWriter, tmp_path / "out", result(found=odd))
        assert len(files(tmp_path / "out" / "crops")) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("writer", [ImageWriter, CropWriter])
    def test_pixels_must_be_there(self, tmp_path: Path, writer: type[Writer]) -> None:
        assert writer.needs_pixels
        with pytest.raises(ValueError, match="expected the pixels"):
            write(writer, tmp_path, replace(result(), pixels=None))


class TestErrorLog:
    def test_no_file_without_errors(self, tmp_path: Path) -> None:
        ErrorLog(tmp_path)
        assert files(tmp_path) == []

    def test_lines(self, tmp_path: Path) -> None:
        log = ErrorLog(tmp_path)
        for name in ("a.jpg", "caf\udce9.jpg"):
            log.write(ImageReadError(name, "the file is empty"))
        log.close()
        lines = [json.loads(line) for line in log.path.read_text().splitlines()]
        assert [line["source"] for line in lines] == ["a.jpg", "caf\udce9.jpg"]
        assert lines[0]["reason"] == "the file is empty"


class TestGrowingFile:
    LAYOUT = json_list("a.json")

    def content(self, folder: Path) -> object:
        return json.loads((folder / "a.json").read_text())

    def test_nothing_to_add(self, tmp_path: Path) -> None:
        file = GrowingFile(tmp_path, self.LAYOUT)
        for elements in ([], [{"a": 1}], []):
            file.append(json_elements(elements))
        file.close()
        assert self.content(tmp_path) == [{"a": 1}]

    def test_does_not_replace_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").touch()
        with pytest.raises(FileExistsError):
            GrowingFile(tmp_path, self.LAYOUT)

    @pytest.mark.parametrize("pieces", [0, 1, 2])
    def test_goes_on_at_an_earlier_size(self, tmp_path: Path, pieces: int) -> None:
        file, sizes = GrowingFile(tmp_path, self.LAYOUT), []
        for number in range(4):
            sizes.append(file.size)
            file.append(json_elements([{"a": number}, {"b": number}]))
        file.close()
        with (tmp_path / "a.json").open("r+b") as torn:
            torn.truncate(file.size - 5)
        again = GrowingFile(tmp_path, self.LAYOUT, sizes[pieces])
        assert len(self.content(tmp_path)) == 2 * pieces
        again.append(json_elements([{"c": 5}]))
        again.close()
        assert self.content(tmp_path)[2 * pieces :] == [{"c": 5}]

    def test_a_file_that_lacks_what_it_had(self, tmp_path: Path) -> None:
        GrowingFile(tmp_path, self.LAYOUT).close()
        with pytest.raises(OSError, match="it is shorter than the 100 bytes"):
            GrowingFile(tmp_path, self.LAYOUT, 100)

    @pytest.mark.parametrize("lists", [[], [[]], [[1], [], [2, 3]], [[], [4]]])
    def test_join(self, tmp_path: Path, lists: list[list[int]]) -> None:
        parts = []
        for number, values in enumerate(lists):
            folder = tmp_path / str(number)
            folder.mkdir()
            file = GrowingFile(folder, self.LAYOUT)
            for value in values:
                file.append(json_elements([{"a": value}]))
            parts.append((folder, file.size))
            file.append(json_elements([{"not": "committed"}]))
            file.close()
        join_files(self.LAYOUT, parts, tmp_path)
        assert self.content(tmp_path) == [{"a": value} for values in lists for value in values]


class TestJournal:
    IMAGES = (DoneImage("photos/a.jpg", "a", 7), DoneImage("caf\udce9.jpg", None, None))

    def written(self, folder: Path) -> Path:
        """A journal of two commits, the second of which ends the run."""
        journal = Journal(folder, Progress())
        file = GrowingFile(folder, Layout("a.txt"))
        for image, listing in zip(self.IMAGES, (None, Listing(2, "abc")), strict=True):
            file.append("line\n")
            journal.commit([image], [file], listing, 3)
        journal.close()
        file.close()
        return folder / JOURNAL

    def test_is_read_back(self, tmp_path: Path) -> None:
        path = self.written(tmp_path)
        progress = read_journal(tmp_path)
        assert progress.locations == {"photos/a.jpg": 1, "caf\udce9.jpg": 1}
        assert (progress.stems, progress.image_ids, progress.sizes) == ({"a"}, {7}, {"a.txt": 10})
        assert (progress.listing, progress.failures) == (Listing(2, "abc"), 3)
        assert progress.journal_size == path.stat().st_size

    def test_cut_anywhere_it_says_what_it_said_before(self, tmp_path: Path) -> None:
        content = self.written(tmp_path).read_bytes()
        first = content.index(b"\n") + 1
        for size in range(len(content)):
            (tmp_path / JOURNAL).write_bytes(content[:size])
            progress = read_journal(tmp_path)
            assert progress.locations.total() == (size >= first)
            assert progress.journal_size == (first if size >= first else None)
            assert progress.listing is None

    def test_goes_on_behind_a_torn_line(self, tmp_path: Path) -> None:
        path = self.written(tmp_path)
        path.write_bytes(path.read_bytes()[:-1])
        journal = Journal(tmp_path, read_journal(tmp_path))
        journal.commit([DoneImage("b.jpg", None, None)], [])
        journal.close()
        assert list(read_journal(tmp_path).locations) == ["photos/a.jpg", "b.jpg"]

    def test_damaged(self, tmp_path: Path) -> None:
        path = self.written(tmp_path)
        path.write_bytes(b"{}\n" + path.read_bytes())
        with pytest.raises(OutputError, match=r"progress.jsonl is damaged; replace the results with"):
            read_journal(tmp_path)

    def test_one_process_at_a_time(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path, Progress())
        journal.commit([], [])
        with pytest.raises(OSError, match="another process is writing results there"):
            Journal(tmp_path, read_journal(tmp_path))
        journal.close()
        Journal(tmp_path, read_journal(tmp_path)).close()

    def test_none(self, tmp_path: Path) -> None:
        assert read_journal(tmp_path) == Progress()


@contextmanager
def small_disk() -> Iterator[None]:
    """No file grows beyond 4000 bytes; what does not fit is cut off, then refused, as on a full disk.

    For the body of a test only: a log file that pytest writes to grows too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFullDisk:
    @small_disk()
    def test_json_list_keeps_what_it_has(self, tmp_path: Path) -> None:
        file = GrowingFile(tmp_path, json_list("a.json"))
        file.append(json_elements([{"a": 1}]))
        for _ in range(2):
            with pytest.raises(OSError, match="File too large"):
                file.append(json_elements([{"a": "x" * 5000}]))
        file.append(json_elements([{"a": 2}]))
        file.close()
        assert json.loads((tmp_path / "a.json").read_text()) == [{"a": 1}, {"a": 2}]

    @pytest.mark.parametrize("kind", ["jsonl", "csv"])
    @small_disk()
    def test_whole_lines_only(self, tmp_path: Path, kind: str) -> None:
        path = write(WRITERS[kind], tmp_path, result())
        before = path.read_bytes()
        path.unlink()
        with WRITERS[kind](tmp_path) as writer:
            writer.write(result())
            with pytest.raises(OSError, match="File too large"):
                writer.write(result(found=FOUND[[0] * 200]))
        assert path.read_bytes() == before

    @pytest.mark.parametrize("writer", [WRITERS["yolo"], ImageWriter, CropWriter])
    @small_disk()
    def test_no_half_files(self, tmp_path: Path, writer: type[Writer]) -> None:
        sharp = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        large = replace(result(found=FOUND[[1] * 200]), pixels=sharp)
        with pytest.raises(OSError, match="File too large"):
            write(writer, tmp_path, large)
        assert files(tmp_path / writer.product) == []


class TestReadOnlyDisk:
    """Cleaning up fails too there, which must not hide what failed first."""

    @pytest.fixture(autouse=True)
    def read_only(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path, *_: object, **__: object) -> None:
            raise OSError(errno.EROFS, "cleaning up", str(path))

        monkeypatch.setattr(Path, "unlink", refuse)

    def test_whole_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt.part").mkdir()
        with pytest.raises(IsADirectoryError):
            write_whole(tmp_path / "a.txt", "text")

    def test_file_of_an_image(self, tmp_path: Path) -> None:
        (tmp_path / "labels" / ".part").mkdir(parents=True)
        with pytest.raises(IsADirectoryError):
            write(WRITERS["yolo"], tmp_path, result())


class TestFolder:
    @staticmethod
    def folder(path: Path, overwrite: bool = False, **options: Any) -> OutputFolder:
        note = {"program": "dcnzoo predict", "model": "x", "device": "cpu", **options.pop("note", {})}
        return OutputFolder(path, PRODUCTS, note, overwrite=overwrite, free=("device",), **options)

    def fill(self, path: Path) -> None:
        folder = self.folder(path)
        folder.check([])
        folder.start()
        journal = Journal(path, Progress())
        journal.begin(["a"])
        journal.close()
        write(WRITERS["yolo"], path, result())
        write(WRITERS["jsonl"], path, result())

    @pytest.mark.parametrize("damage", [b"", b"{}\n"])
    def test_replacing_leaves_what_is_the_users(self, tmp_path: Path, damage: bytes) -> None:
        self.fill(tmp_path)
        path = tmp_path / JOURNAL
        path.write_bytes(damage + path.read_bytes())
        (tmp_path / "labels" / "b.txt").touch()
        self.folder(tmp_path, overwrite=True).start()
        assert files(tmp_path) == ["labels/b.txt", "run.json"]

    def test_new_folder_is_made(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "a" / "b")
        assert json.loads((tmp_path / "a" / "b" / "run.json").read_text())["model"] == "x"

    def test_results_are_kept_unless_told(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        with pytest.raises(OutputError, match=r"holds results \(detections.jsonl, labels.*--overwrite or go"):
            self.folder(tmp_path).check([])

    def test_checking_alone_deletes_nothing(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        before = files(tmp_path)
        self.folder(tmp_path, overwrite=True).check([])
        assert files(tmp_path) == before

    def test_checking_alone_makes_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        self.folder(tmp_path / "mine" / "a" / "b").check([])
        assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
        assert list((tmp_path / "mine").iterdir()) == []

    def test_overwrite_leaves_nothing_of_the_last_run_and_all_else(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        (tmp_path / "mine.txt").touch()
        folder = self.folder(tmp_path, overwrite=True)
        folder.check([])
        folder.start()
        assert files(tmp_path) == ["mine.txt", "run.json"]

    def test_a_link_is_removed_and_its_target_kept(self, tmp_path: Path) -> None:
        self.fill(tmp_path / "out")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "a.jpg").touch()
        (tmp_path / "out" / "images").symlink_to(tmp_path / "mine")
        self.folder(tmp_path / "out", overwrite=True).start()
        assert files(tmp_path / "mine") == ["a.jpg"]
        assert not (tmp_path / "out" / "images").exists()

    def test_resume_keeps_what_counts(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        journal = Journal(tmp_path, Progress(journal_size=(tmp_path / JOURNAL).stat().st_size))
        journal.commit([DoneImage("a", None, None)], [])
        journal.close()
        before = files(tmp_path)
        folder = self.folder(tmp_path, resume=True, note={"device": "cuda"})
        folder.check([])
        folder.start()
        assert folder.resumes
        assert folder.progress().locations == {"a": 1}
        assert files(tmp_path) == before
        assert read_note(tmp_path)["device"] == "cpu"

    def test_resume_of_nothing_that_counts_starts_anew(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        folder = self.folder(tmp_path, resume=True)
        folder.check([])
        folder.start()
        assert folder.progress() == Progress()
        assert files(tmp_path) == ["run.json"]

    def test_resume_of_nothing_at_all(self, tmp_path: Path) -> None:
        folder = self.folder(tmp_path, resume=True)
        folder.check([])
        folder.start()
        assert not folder.resumes
        assert read_note(tmp_path)["model"] == "x"

    def test_resume_with_other_options(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        message = (
            r"was started with model 'x' \(now 'y'\), shard None \(now \[0, 1\]\); give the same options"
        )
        with pytest.raises(OutputError, match=message):
            self.folder(tmp_path, resume=True, note={"model": "y", "shard": (0, 1)}).check([])

    def test_messages_name_what_the_command_can_do(self, tmp_path: Path) -> None:
        self.fill(tmp_path)
        with pytest.raises(OutputError, match=r"\); take another DIR or replace them with --overwrite$"):
            self.folder(tmp_path, can_resume=False, elsewhere="take another DIR").check([])
        with pytest.raises(OutputError, match=r"where results go; take another DIR$"):
            self.folder(tmp_path, elsewhere="take another DIR").check([str(tmp_path / "labels")])
        with pytest.raises(OutputError, match=r"No such file or directory; take another DIR$"):
            self.folder(Path("/proc/nowhere"), elsewhere="take another DIR").check([])

    def test_killed_while_it_deleted_earlier_results(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is left of them is no run to go on with, and may be replaced."""
        self.fill(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(OutputFolder, "clear", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                self.folder(tmp_path, overwrite=True, note={"model": "y"}).start()
        folder = self.folder(tmp_path, resume=True, note={"model": "y"})
        folder.check([])
        folder.start()
        assert not folder.resumes
        assert files(tmp_path) == ["run.json"]

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize(
        ("note", "who"),
        [
            (None, "no run of dcnzoo"),
            ("", "no run of dcnzoo"),
            ("[]", "no run of dcnzoo"),
            ("{}", "no run of dcnzoo"),
            ('{"program": "other"}', "`other`"),
        ],
    )
    def test_what_no_such_run_has_made_is_never_replaced(
        self, tmp_path: Path, overwrite: bool, note: str | None, who: str
    ) -> None:
        (tmp_path / "images").mkdir()
        if note is not None:
            (tmp_path / "run.json").write_text(note)
        with pytest.raises(OutputError, match=f"images, which {who} has made"):
            self.folder(tmp_path, overwrite).check([])

    @pytest.mark.parametrize("source", ["images", "images/a.jpg", "images/*.jpg", "../out/images", "labels"])
    def test_sources_may_not_lie_where_results_go(
        self, tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "out" / "images").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "out")
        with pytest.raises(OutputError, match="where results go"):
            self.folder(Path(), overwrite=True).check([source])

    def test_sources_beside_the_results_are_fine(self, tmp_path: Path) -> None:
        self.folder(tmp_path / "out").check([str(tmp_path), str(tmp_path / "out"), "http://host/images", "-"])

    # Permission bits do not stop the superuser, under whom tests may run; these cases stop everybody.
    @pytest.mark.parametrize("path", ["file", "file/below", "/proc/nowhere"])
    def test_cannot_be_made(self, tmp_path: Path, path: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match=r"cannot write to .*; choose another --out"):
            self.folder(tmp_path / path).check([])

    @pytest.mark.parametrize(
        ("file", "message"),
        [("below/a", "cannot write to below/a: No space left"), (None, "cannot write to out: No space left")],
    )
    def test_disk_trouble_names_the_file(self, file: str | None, message: str) -> None:
        with pytest.raises(OutputError, match=message), output_errors(Path("out")):
            raise OSError(28, "No space left on device", file)
