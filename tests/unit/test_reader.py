"""Processes that read images: whatever an image does to one of them, the next image is read."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcnzoo.errors import ImageReadError
from dcnzoo.image import resize_bilinear
from dcnzoo.reader import ImageReaders, ReadSettings, pixel_limit
from tests.pictures import noise, png_claiming, save
from tests.waiting import wait_until

SETTINGS = ReadSettings(short_side=16, long_side=32, keep_pixels=True)


@pytest.fixture(params=[0, 1], ids=["in this process", "in another"])
def readers(request: pytest.FixtureRequest) -> Iterator[ImageReaders]:
    with ImageReaders(request.param, SETTINGS, timeout=60) as opened:
        yield opened


def children() -> list[int]:
    """Processes that this one has started and not yet waited for, since the test began."""
    return [pid for pid in all_children() if pid not in OTHERS]


OTHERS = set[int]()


@pytest.fixture(autouse=True)
def only_own_children() -> None:
    """Leaves out processes that other tests have started."""
    OTHERS.clear()
    OTHERS.update(all_children())


def all_children() -> list[int]:
    started = list[str]()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            started += (thread / "children").read_text().split()
    return [int(pid) for pid in started]


def test_pixels(readers: ImageReaders, tmp_path: Path) -> None:
    pixels = noise(40, 60)
    read = readers.read(str(save(tmp_path / "a.png", pixels)))
    np.testing.assert_array_equal(read.pixels, pixels)
    np.testing.assert_array_equal(read.prepared.pixels, resize_bilinear(pixels, (16, 24)))
    assert read.prepared.original_size == (40, 60)
    assert read.times.keys() == {"decode", "preprocess"}
    read.pixels[0] = 0  # they are the caller's own


def test_pixels_that_nobody_wants_are_not_sent(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(40, 60))
    for count in (0, 1):
        with ImageReaders(count, ReadSettings(16, 32)) as readers:
            assert readers.read(str(path)).pixels is None


def test_what_cannot_be_read_is_told_as_ever(readers: ImageReaders, tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for name, reason in (("empty.png", "the file is empty"), ("caf\udce9.png", "No such file or directory")):
        with pytest.raises(ImageReadError) as raised:
            readers.read(str(tmp_path / name))
        assert (raised.value.source, raised.value.reason) == (str(tmp_path / name), reason)
    assert readers.read(str(save(tmp_path / "b.png", noise(4, 4)))).pixels is not None


def test_relative_paths_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", noise(4, 4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DCNZOO_OFFLINE", "1")
    with ImageReaders(1, SETTINGS) as readers:
        assert readers.read("a.png").pixels is not None
        with pytest.raises(ImageReadError, match="DCNZOO_OFFLINE is set"):
            readers.read("http://127.0.0.1:9/a.png")


def test_nothing_is_imported_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "numpy", "PIL"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(3)")
    monkeypatch.chdir(tmp_path)
    with ImageReaders(1, SETTINGS) as readers:
        assert readers.read(str(save(tmp_path / "a.png", noise(4, 4)))).pixels is not None


@pytest.mark.parametrize("max_pixels", [None, 100])
def test_the_limit_of_pixels_holds_there_too(tmp_path: Path, max_pixels: int | None) -> None:
    (tmp_path / "bomb.png").write_bytes(png_claiming(40_000, 40_000))
    save(tmp_path / "a.png", noise(11, 10))
    with ImageReaders(1, ReadSettings(16, 32, max_pixels=max_pixels)) as readers:
        with pytest.raises(ImageReadError, match="--max-pixels"):
            readers.read(str(tmp_path / "bomb.png"))
        if max_pixels:
            with pytest.raises(ImageReadError, match="--max-pixels"):
                readers.read(str(tmp_path / "a.png"))
        else:
            readers.read(str(tmp_path / "a.png"))


def test_the_limit_of_pixels_is_given_back() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pixel_limit(100):
        assert Image.MAX_IMAGE_PIXELS == 50
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.fixture
def stuck(tmp_path: Path) -> str:
    """A file that nobody ever writes to: opening it takes for ever."""
    os.mkfifo(tmp_path / "stuck.png")
    return str(tmp_path / "stuck.png")


def test_an_image_that_takes_too_long(tmp_path: Path, stuck: str) -> None:
    good = str(save(tmp_path / "a.png", noise(4, 4)))
    with ImageReaders(1, SETTINGS, timeout=4) as readers:
        readers.read(good)
        start = time.monotonic()
        with pytest.raises(ImageReadError, match=r"it takes longer than 4 s \(--image-timeout\)"):
            readers.read(stuck)
        assert 4 <= time.monotonic() - start < 30
        readers.read(good)


def test_a_process_that_dies_is_replaced(tmp_path: Path, stuck: str) -> None:
    """The image that it had is tried once more, and given up when the next one dies of it."""
    good = str(save(tmp_path / "a.png", noise(4, 4)))
    with ImageReaders(1, SETTINGS) as readers, ThreadPoolExecutor(1) as pool:
        readers.read(good)
        (first,) = children()
        os.kill(first, signal.SIGKILL)
        readers.read(good)
        (second,) = children()
        reading = pool.submit(readers.read, stuck)
        killed = [first]
        for _ in range(2):
            wait_until(lambda: bool(set(children()) - set(killed)))
            (victim,) = set(children()) - set(killed)
            time.sleep(0.5)
            os.kill(victim, signal.SIGSEGV)
            killed.append(victim)
        with pytest.raises(ImageReadError, match="the process that read it ended with SIGSEGV"):
            reading.result()
        assert killed[1] == second
        readers.read(good)


def test_closing_ends_what_is_being_read(stuck: str) -> None:
    readers = ImageReaders(1, SETTINGS)
    failures = list[str]()

    def read() -> None:
        try:
            readers.read(stuck)
        except ImageReadError as error:
            failures.append(error.reason)

    with readers:
        thread = threading.Thread(target=read)
        thread.start()
        wait_until(lambda: bool(children()))
    thread.join(timeout=30)
    assert failures == ["the process that read it ended with SIGKILL"]
    assert not children()
