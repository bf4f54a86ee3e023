"""Work shared by processes."""

from __future__ import annotations

import pytest

from dcnzoo.errors import DcnzooError
from dcnzoo.processes import Processes, Share, environment_share, find_processes


@pytest.mark.parametrize("items", [0, 1, 2, 5, 12, 13])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_item_is_done_once_in_its_own_batch(items: int, count: int, batch_size: int) -> None:
    numbers = list(range(items))

    def batches(share: list[int]) -> list[list[int]]:
        return [share[start : start + batch_size] for start in range(0, len(share), batch_size)]

    shares = [
        [number for number in numbers if Share(index, count).holds(number, batch_size)]
        for index in range(count)
    ]
    assert sorted(number for share in shares for number in share) == numbers
    together = sorted(batch for share in shares for batch in batches(share))
    assert together == batches(numbers)
    assert max(map(len, shares)) - min(map(len, shares)) <= batch_size


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with find_processes() as processes:
        assert processes == Processes(rank=0, count=1)
        assert processes.is_first
        assert processes.gather("a") == ["a"]
        assert processes.share == Share()
        processes.wait()


def test_torchrun_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert environment_share() == Share(0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert environment_share() == Share(1, 3)
    assert Processes(1, 3).share == Share(1, 3)
    assert Share(1, 3).folder_name == "shard-2-of-3"


@pytest.mark.parametrize(
    ("rank", "count"),
    [
        (None, "2"),
        ("0", None),
        ("", "2"),
        ("x", "2"),
        ("0", "x"),
        ("2", "2"),
        ("-1", "2"),
        ("0", "0"),
        ("0", "1.5"),
    ],
)
def test_variables_that_make_no_sense(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, count: str | None
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", count)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    expected = rf"RANK={rank or ''} and WORLD_SIZE={count or ''}, .*; unset them"
    with pytest.raises(DcnzooError, match=expected):
        environment_share()
    with pytest.raises(DcnzooError, match=expected), find_processes():
        pass


def test_nobody_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(DcnzooError, match=r"cannot join 2 processes: .*; start them with torchrun"),
        find_processes(),
    ):
        pass
