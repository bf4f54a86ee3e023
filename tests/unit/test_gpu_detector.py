"""A detector on a GPU with two batches under way, which no test without one can run."""

from __future__ import annotations

import numpy as np
import pytest

import dcnzoo
from dcnzoo.image import PreparedImage
from dcnzoo.results import Detections
from tests.pictures import noise
from tests.random_detector import ARCH, write_random_checkpoint

pytestmark = pytest.mark.cuda

BATCHES = 8


@pytest.fixture(scope="module", params=[False, True], ids=["eager", "graphs"])
def predictor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dcnzoo.Predictor:
    path = write_random_checkpoint(tmp_path_factory.mktemp("weights") / "random.pth")
    sides = {"short_side": 64, "long_side": 96}
    return dcnzoo.load(weights=path, arch=ARCH, device="cuda", cuda_graphs=request.param, **sides)


@pytest.fixture(scope="module")
def batches(predictor: dcnzoo.Predictor) -> list[list[PreparedImage]]:
    """Different pictures of one shape."""
    rolled = [np.roll(noise(60, 80), 7 * n, axis=1) for n in range(BATCHES)]
    return [[predictor.prepare(picture)] for picture in rolled]


def check_equal(found: list[Detections], wanted: list[Detections]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert len(other.scores) > 0
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=0.01)


def test_batches_under_way_do_not_meet(
    predictor: dcnzoo.Predictor, batches: list[list[PreparedImage]]
) -> None:
    """All begin before the first one's detections are taken: none may find another's."""
    wanted = [predictor.predict_prepared(batch) for batch in batches]
    assert len({found[0].scores.tobytes() for found in wanted}) == BATCHES
    for _ in range(3):
        finishes = [predictor.begin_prepared(batch) for batch in batches]
        for finish, expected in zip(finishes, wanted, strict=True):
            check_equal(finish(), expected)
