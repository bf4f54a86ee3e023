"""How long the stages of the work take."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StageTimes(defaultdict[str, float]):
    """Seconds spent per stage of the work."""

    def __init__(self) -> None:
        super().__init__(float)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (), None, None, iter(self.items())

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self[stage] += time.perf_counter() - start

    def add(self, other: StageTimes) -> None:
        """Adds the seconds of another run of the same stages."""
        for stage, seconds in other.items():
            self[stage] += seconds
