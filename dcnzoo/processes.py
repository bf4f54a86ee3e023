"""Several processes that share the work, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = timedelta(days=2)
"""How long a process waits for the slowest; when one fails, torchrun ends the others at once."""


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Attributes:
        rank: its number, 0 to count - 1; 0 for the one that reports.
        count: how many there are.
        local_rank: its number on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

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

    def share(self, items: Sequence[T], batch_size: int) -> list[T]:
        """Returns the items that this process has to do.

        Whole batches are dealt out in turn, so that every item is done once and with the same
        companions as if one process did all.

        Args:
            items: the same in every process.
            batch_size: items that are done together.
        """
        batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        return [item for batch in batches[self.rank :: self.count] for item in batch]


@contextmanager
def find_processes() -> Iterator[Processes]:
    """Joins the processes that RANK, WORLD_SIZE and LOCAL_RANK tell of; without these there is just one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    import torch.distributed

    # Only a few small objects are exchanged: gloo works with and without GPUs.
    torch.distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(int(os.environ["RANK"]), count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        torch.distributed.destroy_process_group()
