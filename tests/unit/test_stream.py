"""Reading ahead, batching, and the bound on what is in memory."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from dcnzoo.errors import ImageReadError, OutputError
from dcnzoo.image import PreparedImage
from dcnzoo.results import Detections
from dcnzoo.sources import ImageSource
from dcnzoo.stream import STAGES, ImageStream, StreamSettings, Tally, map_ahead
from dcnzoo.writers import ErrorLog, ImageResult, Writer
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
        self.results: list[weakref.ref[Detections]] = []

    def prepare(self, image: np.ndarray) -> PreparedImage:
        return PreparedImage(image, image.shape[:2])

    def predict_prepared(self, prepared: list[PreparedImage], **_options: object) -> list[Detections]:
        self.batches.append(len(prepared))
        found = [self.find(image.original_size) for image in prepared]
        self.results += map(weakref.ref, found)
        return found

    @staticmethod
    def find(size: tuple[int, int]) -> Detections:
        box = np.array([[0, 0, 2, 2]], np.float32)
        return Detections(box, np.ones(1, np.float32), np.zeros(1, np.int64), ("a",), (1,), size)

    @property
    def alive(self) -> int:
        return sum(result() is not None for result in self.results)


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


def stream(
    tmp_path: Path, predictor: FakePredictor, writer: Writer, **settings: object
) -> tuple[ImageStream, Tally]:
    tally = Tally()
    return ImageStream(
        predictor, [writer], ErrorLog(tmp_path), StreamSettings(**settings), tally, progress=lambda _: None
    ), tally


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize(("batch_size", "batches"), [(1, [1] * 11), (4, [4, 4, 3]), (20, [11])])
def test_batches_are_consecutive_readable_images(
    tmp_path: Path, images: list[ImageSource], workers: int, batch_size: int, batches: list[int]
) -> None:
    predictor = FakePredictor()
    recorder = Recorder(predictor)
    run, tally = stream(tmp_path, predictor, recorder, workers=workers, batch_size=batch_size)
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
    run, _ = stream(tmp_path, predictor, recorder, workers=workers, batch_size=2)
    run.run(source for _ in range(20) for source in images)
    assert len(recorder.alive) == 220
    assert max(recorder.alive) <= 4  # a batch, and the one before it


def test_pixels_are_kept_only_for_writers_that_need_them(
    tmp_path: Path, images: list[ImageSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    for needed in (True, False):
        monkeypatch.setattr(Recorder, "needs_pixels", needed)
        recorder = Recorder(FakePredictor())
        run, _ = stream(tmp_path, recorder.predictor, recorder)
        run.run(images[:2])
        assert recorder.pixels == [needed, needed]


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_stops_at_the_first_failure(tmp_path: Path, images: list[ImageSource], workers: int) -> None:
    predictor = FakePredictor()
    run, tally = stream(tmp_path, predictor, Recorder(predictor), strict=True, workers=workers)
    with pytest.raises(ImageReadError, match=r"3\.png: the file is empty"):
        run.run(images)
    assert (tally.images, tally.failures) == (3, 1)
    assert (tmp_path / "errors.jsonl").read_text().count("\n") == 1


def test_progress_counts_every_image(tmp_path: Path, images: list[ImageSource]) -> None:
    predictor, counts = FakePredictor(), []
    settings = StreamSettings(batch_size=5)
    writers = [Recorder(predictor)]
    ImageStream(predictor, writers, ErrorLog(tmp_path), settings, Tally(), progress=counts.append).run(images)
    assert sum(counts) == 12


def test_a_full_disk_is_an_output_error(tmp_path: Path, images: list[ImageSource]) -> None:
    class FullDisk(Recorder):
        def write(self, result: ImageResult) -> None:
            raise OSError(28, "No space left on device", str(result.source.name))

    predictor = FakePredictor()
    run, _ = stream(tmp_path, predictor, FullDisk(predictor), workers=2)
    with pytest.raises(OutputError, match=r"cannot write to 0\.png: No space left"):
        run.run(images)
