"""Reading ahead, batching, and the bound on what is in memory."""

from __future__ import annotations

import errno
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from dcnzoo.errors import ImageReadError, ImageWriteError, OutOfMemoryError, OutputError
from dcnzoo.image import PreparedImage
from dcnzoo.manifest import Preprocessing
from dcnzoo.processes import Share
from dcnzoo.results import Detections
from dcnzoo.sources import ImageSource
from dcnzoo.stream import STAGES, ImageStream, StreamSettings, Tally, map_ahead
from dcnzoo.writers import ImageIds, ImageResult, Shard, Writer, read_journal
from dcnzoo.writers.coco import CocoWriter
from dcnzoo.writers.yolo import YoloWriter
from tests.pictures import noise, save


class TestMapAhead:
    @pytest.mark.parametrize("workers", [0, 1, 4])
    def test_keeps_the_order(self, workers: int) -> None:
        with map_ahead(lambda number: number**2, range(50), workers, ahead=3) as squares:
            assert list(squares) == [number**2 for number in range(50)]

    @pytest.mark.parametrize(("workers", "ahead", "limit"), [(0, 5, 1), (1, 1, 2), (3, 5, 6)])
    def test_takes_no_more_than_it_may(self, workers: int, ahead: int, limit: int) -> None:
        taken = []

        def items() -> Iterator[int]:
            for number in range(50):
                taken.append(number)
                yield number

        with map_ahead(abs, items(), workers, ahead) as results:
            for done, _ in enumerate(results):
                assert len(taken) - done <= limit

    def test_works_at_the_same_time(self) -> None:
        barrier = threading.Barrier(3, timeout=20)
        with map_ahead(lambda _: barrier.wait(), range(3), workers=3, ahead=3) as results:
            assert sorted(results) == [0, 1, 2]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_an_error_comes_out_where_its_result_would(self, workers: int) -> None:
        with map_ahead(lambda number: 1 // number, [1, 1, 0, 1], workers, ahead=4) as results:
            assert [next(results), next(results)] == [1, 1]
            with pytest.raises(ZeroDivisionError):
                next(results)

    def test_leaving_drops_what_has_not_begun(self) -> None:
        begun = []
        go_on = threading.Event()

        def work(number: int) -> None:
            begun.append(number)
            go_on.wait(20)

        with map_ahead(work, range(100), workers=1, ahead=50) as results:
            waiter = threading.Thread(target=lambda: next(results))
            waiter.start()
            while not begun:
                pass
            go_on.set()
            waiter.join()
        assert len(begun) < 100


class FakePredictor:
    """Finds one object in every image, and says which results are alive."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.freed = 0
        self.results: list[weakref.ref[Detections]] = []

    preprocessing = Preprocessing(short_side=8, long_side=8)
    overlaps = False

    def begin_prepared(
        self, prepared: list[PreparedImage], **_options: object
    ) -> Callable[[], list[Detections]]:
        return partial(self.predict, prepared)

    def predict(self, prepared: list[PreparedImage]) -> list[Detections]:
        self.batches.append(len(prepared))
        found = [self.find(image.original_size) for image in prepared]
        self.results += map(weakref.ref, found)
        return found

    def free_memory(self) -> None:
        self.freed += 1

    @staticmethod
    def find(size: tuple[int, int]) -> Detections:
        box = np.array([[0, 0, 2, 2]], np.float32)
        return Detections(box, np.ones(1, np.float32), np.zeros(1, np.int64), ("a",), (1,), size)

    @property
    def alive(self) -> int:
        return sum(result() is not None for result in self.results)


class FakeGpu(FakePredictor):
    """Computes a batch while the caller goes on; notes what is begun and finished, by width."""

    overlaps = True

    def __init__(self, room: int = 99) -> None:
        super().__init__()
        self.log: list[str] = []
        self.room = room

    def begin_prepared(
        self, prepared: list[PreparedImage], **_options: object
    ) -> Callable[[], list[Detections]]:
        if len(prepared) > self.room:
            raise OutOfMemoryError("too large")
        width = prepared[0].original_size[1]
        self.log.append(f"begin {width}")

        def finish() -> list[Detections]:
            self.log.append(f"finish {width}")
            return self.predict(prepared)

        return finish


class Recorder(Writer):
    product = "nothing"
    needs_pixels = True

    def __init__(self, predictor: FakePredictor) -> None:
        super().__init__(Path())
        self.predictor, self.names, self.alive, self.pixels = (
            predictor,
            list[str](),
            list[int](),
            list[bool](),
        )

    def write(self, result: ImageResult) -> None:
        self.names.append(str(result.source.name))
        self.alive.append(self.predictor.alive)
        self.pixels.append(result.pixels is not None)


@pytest.fixture
def images(tmp_path: Path) -> list[ImageSource]:
    """Twelve images, the fourth of which is empty."""
    paths = [save(tmp_path / f"{number}.png", noise(4, 4)) for number in range(12)]
    paths[3].write_bytes(b"")
    return [ImageSource(str(path), PurePosixPath(path.name)) for path in paths]


@contextmanager
def stream(
    folder: Path,
    predictor: FakePredictor,
    *writers: Writer,
    progress: Callable[[int], object] = lambda _: None,
    deferred: Callable[[], AbstractContextManager[object]] = nullcontext,
    **settings: object,
) -> Iterator[tuple[ImageStream, Tally]]:
    """A stream that goes on in a folder."""
    tally = Tally()
    with Shard(folder, read_journal(folder), lambda *_: writers) as shard:
        chosen = StreamSettings(**settings)
        yield ImageStream(predictor, shard, chosen, tally, progress=progress, deferred=deferred), tally


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize(("batch_size", "batches"), [(1, [1] * 11), (4, [4, 4, 3]), (20, [11])])
def test_batches_are_consecutive_readable_images(
    tmp_path: Path, images: list[ImageSource], workers: int, batch_size: int, batches: list[int]
) -> None:
    predictor = FakePredictor()
    recorder = Recorder(predictor)
    with stream(tmp_path, predictor, recorder, workers=workers, batch_size=batch_size) as (run, tally):
        run.run(images)
    assert predictor.batches == batches
    assert recorder.names == [f"{number}.png" for number in range(12) if number != 3]
    assert (tally.images, tally.failures, tally.detections) == (11, 1, 11)
    assert set(tally.times) <= set(STAGES)
    assert tally.times["decode"] > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_results_do_not_pile_up(tmp_path: Path, images: list[ImageSource], workers: int) -> None:
    predictor = FakePredictor()
    recorder = Recorder(predictor)
    with stream(tmp_path, predictor, recorder, workers=workers, batch_size=2) as (run, _):
        run.run(source for _ in range(20) for source in images)
    assert len(recorder.alive) == 220
    assert max(recorder.alive) <= 4  # a batch, and the one before it


def test_pixels_are_kept_only_for_writers_that_need_them(
    tmp_path: Path, images: list[ImageSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in (True, False):
        monkeypatch.setattr(Recorder, "needs_pixels", needed)
        recorder = Recorder(FakePredictor())
        (tmp_path / str(needed)).mkdir()
        with stream(tmp_path / str(needed), recorder.predictor, recorder) as (run, _):
            run.run(images[:2])
        assert recorder.pixels == [needed, needed]


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_stops_at_the_first_failure(tmp_path: Path, images: list[ImageSource], workers: int) -> None:
    predictor = FakePredictor()
    recorder = Recorder(predictor)
    with (
        stream(tmp_path, predictor, recorder, strict=True, workers=workers) as (run, tally),
        pytest.raises(ImageReadError, match=r"3\.png: the file is empty"),
    ):
        run.run(images)
    assert (tally.images, tally.failures) == (3, 1)
    assert (tmp_path / "errors.jsonl").read_text().count("\n") == 1
    assert len(read_journal(tmp_path).locations) == 3


def test_progress_counts_every_image(tmp_path: Path, images: list[ImageSource]) -> None:
    predictor, counts = FakePredictor(), list[int]()
    with stream(tmp_path, predictor, Recorder(predictor), progress=counts.append, batch_size=5) as (run, _):
        run.run(images)
    assert sum(counts) == 12


def test_a_full_disk_is_an_output_error(tmp_path: Path, images: list[ImageSource]) -> None:
    class FullDisk(Recorder):
        def write(self, result: ImageResult) -> None:
            if len(self.names) == 2:
                raise OSError(28, "No space left on device", str(result.source.name))
            super().write(result)

    predictor = FakePredictor()
    with (
        stream(tmp_path, predictor, FullDisk(predictor), workers=2) as (run, _),
        pytest.raises(OutputError, match=r"cannot write to 2\.png: No space left"),
    ):
        run.run(images)
    assert set(read_journal(tmp_path).locations) <= {images[0].location, images[1].location}


class TestResume:
    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_what_is_done_is_skipped(
        self, tmp_path: Path, images: list[ImageSource], batch_size: int
    ) -> None:
        recorders = [Recorder(FakePredictor()) for _ in range(3)]
        for recorder, count in zip(recorders, (4, 9, 12), strict=True):
            with stream(tmp_path, recorder.predictor, recorder, batch_size=batch_size) as (run, tally):
                run.run(images[:count])
            assert tally.images + tally.skipped + tally.failures == count
        names = [recorder.names for recorder in recorders]
        assert names == [[f"{n}.png" for n in part] for part in ((0, 1, 2), range(4, 9), range(9, 12))]

    def test_what_failed_is_tried_again(self, tmp_path: Path, images: list[ImageSource]) -> None:
        first, second = Recorder(FakePredictor()), Recorder(FakePredictor())
        with stream(tmp_path, first.predictor, first) as (run, _):
            run.run(images)
        assert read_journal(tmp_path).failures == 1
        save(Path(images[3].location), noise(4, 4))
        with stream(tmp_path, second.predictor, second) as (run, tally):
            run.run(images)
        assert second.names == ["3.png"]
        assert (tally.skipped, tally.failures) == (11, 0)
        assert not (tmp_path / "errors.jsonl").exists()

    def test_an_image_that_is_listed_twice_is_done_twice(
        self, tmp_path: Path, images: list[ImageSource]
    ) -> None:
        first, second = Recorder(FakePredictor()), Recorder(FakePredictor())
        with stream(tmp_path, first.predictor, first) as (run, _):
            run.run(images[:2])
        with stream(tmp_path, second.predictor, second) as (run, _):
            run.run([images[0], images[1], images[0], images[2]])
        assert second.names == ["0.png", "2.png"]

    def test_files_keep_their_names(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Whoever has taken a name keeps it, though it is not seen again."""
        paths = [save(tmp_path / "in" / name, noise(8, 8)) for name in ("a.png", "a.bmp", "b.png")]
        sources = [ImageSource(str(path), PurePosixPath(path.name)) for path in paths]
        for count in (1, 2, 3):
            writer = YoloWriter(tmp_path)
            with stream(tmp_path, FakePredictor(), writer) as (run, _):
                run.run(sources[:count])
        assert sorted(path.name for path in writer.path.iterdir()) == ["a.bmp.txt", "a.txt", "b.txt"]
        assert "results of a.bmp go to a.bmp" in caplog.text

    def test_ids_and_names_are_those_of_a_run_without_a_stop(
        self, tmp_path: Path, images: list[ImageSource]
    ) -> None:
        given = {}
        for name, counts in {"once": (12,), "twice": (5, 12)}.items():
            (tmp_path / name).mkdir()
            for count in counts:
                done = read_journal(tmp_path / name)
                writers = (CocoWriter(tmp_path / name, done.sizes),)
                with stream(tmp_path / name, FakePredictor(), *writers) as (run, _):
                    run.image_ids = ImageIds(taken=done.image_ids)
                    run.run(images[:count])
            given[name] = (tmp_path / name / "images.json").read_bytes()
        assert given["once"] == given["twice"]


class TestShare:
    @pytest.mark.parametrize(("count", "batch_size"), [(2, 1), (3, 2), (13, 1)])
    def test_every_image_is_done_by_one(
        self, tmp_path: Path, images: list[ImageSource], count: int, batch_size: int
    ) -> None:
        names, listings = [], set()
        for index in range(count):
            recorder, folder = Recorder(FakePredictor()), tmp_path / str(index)
            folder.mkdir()
            options = {"share": Share(index, count), "batch_size": batch_size}
            counts = list[int]()
            with stream(folder, recorder.predictor, recorder, progress=counts.append, **options) as (run, _):
                run.run(images)
            assert sum(counts) == 12  # so the bar ends full, whoever did them
            names += recorder.names
            listings.add(read_journal(folder).listing)
        assert sorted(names) == sorted(f"{number}.png" for number in range(12) if number != 3)
        assert len(listings) == 1


class TestOverlap:
    """A GPU computes the next batch while the CPU writes the last one."""

    @pytest.fixture
    def sources(self, tmp_path: Path) -> list[ImageSource]:
        """Five images, 1 to 5 pixels wide; the fourth is empty."""
        paths = [save(tmp_path / "in" / f"{n}.png", noise(4, n)) for n in range(1, 6)]
        paths[3].write_bytes(b"")
        return [ImageSource(str(path), PurePosixPath(path.name)) for path in paths]

    def test_the_next_batch_is_begun_before_one_is_written(
        self, tmp_path: Path, sources: list[ImageSource]
    ) -> None:
        predictor = FakeGpu()
        recorder = Recorder(predictor)
        with stream(tmp_path, predictor, recorder) as (run, tally):
            run.run(sources)
        assert predictor.log == [
            *("begin 1", "begin 2", "finish 1", "begin 3", "finish 2"),
            *("begin 5", "finish 3", "finish 5"),
        ]
        assert recorder.names == ["1.png", "2.png", "3.png", "5.png"]
        assert (tally.images, tally.failures) == (4, 1)

    def test_strict_stops_with_all_written_that_was_begun(
        self, tmp_path: Path, sources: list[ImageSource]
    ) -> None:
        predictor = FakeGpu()
        recorder = Recorder(predictor)
        with (
            stream(tmp_path, predictor, recorder, strict=True) as (run, _),
            pytest.raises(ImageReadError),
        ):
            run.run(sources)
        assert recorder.names == ["1.png", "2.png", "3.png"]

    def test_a_batch_that_is_too_large_keeps_its_turn(
        self, tmp_path: Path, sources: list[ImageSource]
    ) -> None:
        predictor = FakeGpu(room=1)
        recorder = Recorder(predictor)
        with stream(tmp_path, predictor, recorder, batch_size=3) as (run, _):
            run.run(sources)
        assert recorder.names == ["1.png", "2.png", "3.png", "5.png"]
        assert predictor.freed == 3


class TestOutOfMemory:
    class Small(FakePredictor):
        """Has room for so many images at once, and for none whose original is 9 pixels wide."""

        room = 1

        def predict(self, prepared: list[PreparedImage]) -> list[Detections]:
            if len(prepared) > self.room or any(image.original_size[1] == 9 for image in prepared):
                self.batches.append(-len(prepared))
                raise OutOfMemoryError("too large")
            return super().predict(prepared)

    @pytest.fixture
    def sources(self, tmp_path: Path) -> list[ImageSource]:
        """Four images; the third is 9 pixels wide."""
        paths = [save(tmp_path / "in" / f"{n}.png", noise(4, 9 if n == 2 else 4)) for n in range(4)]
        return [ImageSource(str(path), PurePosixPath(path.name)) for path in paths]

    def test_a_batch_is_tried_image_by_image(self, tmp_path: Path, sources: list[ImageSource]) -> None:
        predictor = self.Small()
        recorder = Recorder(predictor)
        with stream(tmp_path, predictor, recorder, batch_size=4) as (run, tally):
            run.run(sources)
        assert predictor.batches == [-4, 1, 1, -1, 1]
        assert recorder.names == ["0.png", "1.png", "3.png"]
        assert (tally.images, tally.failures) == (3, 1)
        assert predictor.freed == 4
        (line,) = (tmp_path / "errors.jsonl").read_text().splitlines()
        assert json.loads(line) == {"source": sources[2].location, "reason": "too large"}

    def test_an_image_that_was_alone_is_tried_again(self, tmp_path: Path, sources: list[ImageSource]) -> None:
        predictor = self.Small()
        with stream(tmp_path, predictor, Recorder(predictor)) as (run, tally):
            run.run(sources)
        assert predictor.batches == [1, 1, -1, -1, 1]
        assert (tally.images, tally.failures) == (3, 1)


def test_a_stop_waits_for_the_batch_in_hand(tmp_path: Path, images: list[ImageSource]) -> None:
    """What the context manager lets through comes between batches, and then everything counts."""
    predictor = FakePredictor()

    @contextmanager
    def deferred() -> Iterator[None]:
        yield
        if len(predictor.batches) == 2:
            raise KeyboardInterrupt

    recorder = Recorder(predictor)
    with (
        pytest.raises(KeyboardInterrupt),
        stream(tmp_path, predictor, recorder, deferred=deferred, batch_size=3) as (run, _),
    ):
        run.run(images)
    assert recorder.names == ["0.png", "1.png", "2.png", "4.png", "5.png", "6.png"]
    assert len(read_journal(tmp_path).locations) == 6
    assert read_journal(tmp_path).listing is None


class Picky(YoloWriter):
    """Cannot write the files of one image, or of a class of them on a broken disk."""

    def __init__(self, folder: Path, number: int | None) -> None:
        super().__init__(folder)
        self.number = number

    def write(self, result: ImageResult) -> None:
        super().write(result)
        if result.source.name.name == "5.png":
            raise OSError(self.number, "it went wrong") if self.number else OSError("encoder error -2")


class TestOneImageThatCannotBeWritten:
    NAMES = tuple(f"{number}.png" for number in range(12) if number not in (3, 5))

    @pytest.mark.parametrize("number", [None, errno.ENAMETOOLONG, errno.EISDIR, errno.EEXIST, errno.ENOTDIR])
    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_is_listed_and_the_others_are_done(
        self, tmp_path: Path, images: list[ImageSource], number: int | None, batch_size: int
    ) -> None:
        folder = tmp_path / "out"
        folder.mkdir()
        growing = CocoWriter(folder)
        writers = (growing, Picky(folder, number))
        with stream(folder, FakePredictor(), *writers, batch_size=batch_size) as (run, tally):
            run.image_ids = ImageIds()
            run.run(images)
        assert (tally.images, tally.failures) == (10, 2)
        errors = [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]
        assert [error["source"] for error in errors] == [images[3].location, images[5].location]
        reason = "encoder error -2" if number is None else "it went wrong"
        assert errors[1]["reason"] == f"cannot write labels: {reason}"
        listed = json.loads((folder / "images.json").read_text())["images"]
        assert [Path(image["file_name"]).name for image in listed] == list(self.NAMES)
        assert sorted(path.stem for path in (folder / "labels").iterdir()) == sorted(
            name.removesuffix(".png") for name in self.NAMES
        )
        assert read_journal(folder).locations.total() == 10

    def test_stops_a_strict_run(self, tmp_path: Path, images: list[ImageSource]) -> None:
        writer = Picky(tmp_path, None)
        with (
            pytest.raises(ImageWriteError, match=r"image .*5.png: cannot write labels: encoder error -2"),
            stream(tmp_path, FakePredictor(), writer, strict=True) as (run, _),
        ):
            run.run(images[4:])

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
    def test_a_broken_disk_stops_the_run(
        self, tmp_path: Path, images: list[ImageSource], number: int
    ) -> None:
        writer = Picky(tmp_path, number)
        with (
            pytest.raises(OutputError, match=r"labels: it went wrong; choose another --out"),
            stream(tmp_path, FakePredictor(), writer) as (run, tally),
        ):
            run.run(images)
        assert tally.images == 4
