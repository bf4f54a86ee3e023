"""Several processes that share the work, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from dcnzoo.errors import DcnzooError

T = TypeVar("T")

PATIENCE = timedelta(days=2)
"""How long a process waits for the slowest; when one fails, torchrun ends the others at once."""


@dataclass(frozen=True)
class Share:
    """One of several equal parts of the work.

    Whole batches are dealt out in turn, so that every item is done once and with the same companions as
    if one process did all.

    Attributes:
        index: which part, 0 to count - 1.
        count: how many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def folder_name(self) -> str:
        """Name of the folder with its results."""
        return f"shard-{self.index + 1}-of-{self.count}"

    def holds(self, position: int, batch_size: int) -> bool:
        """Tells whether an item belongs to the part.

        Args:
            position: of the item among all, from 0.
            batch_size: items that are done together.
        """
        return position // batch_size % self.count == self.index


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Attributes:
        rank: its number, 0 to count - 1; 0 for the one that reports.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that does what is done once."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Waits until every process has come here, and returns what each brought, by rank."""
        if self.count == 1:
            return [value]
        import torch.distributed

        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Waits until every process has come here."""
        self.gather(None)

    @property
    def share(self) -> Share:
        """What this process has to do."""
        return Share(self.rank, self.count)


@contextmanager
def find_processes(backend: str = "gloo") -> Iterator[Processes]:
    """Joins the processes that RANK and WORLD_SIZE tell of; without these there is just one.

    Args:
        backend: of torch.distributed. For a few small objects gloo is enough, with and without GPUs.

    Raises:
        DcnzooError: the variables make no sense, or those are missing that say where the others are.
    """
    share = environment_share()
    if share.count == 1:
        yield Processes()
        return
    import torch.distributed

    try:
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    except ValueError as error:
        raise DcnzooError(
            f"cannot join {share.count} processes: {error}; start them with torchrun"
        ) from error
    try:
        yield Processes(share.index, share.count)
    finally:
        torch.distributed.destroy_process_group()


def environment_share() -> Share:
    """Returns the part that RANK and WORLD_SIZE, as torchrun sets them, give to this process.

    Raises:
        DcnzooError: only one of them is set, or they are no whole numbers with 0 <= RANK < WORLD_SIZE.
    """
    rank, count = (os.environ.get(name) or None for name in ("RANK", "WORLD_SIZE"))
    if rank is None and count is None:
        return Share()
    if rank and count and rank.isdecimal() and count.isdecimal() and int(rank) < int(count):
        return Share(int(rank), int(count))
    raise DcnzooError(
        f"the environment has RANK={rank or ''} and WORLD_SIZE={count or ''}, of which torchrun sets both,"
        " with 0 <= RANK < WORLD_SIZE; unset them to do all the work in this process"
    )
