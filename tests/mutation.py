"""Damaged copies of good files."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

EXTREMES = (
    b"\0",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\0\0\0",
)
SECONDS = 8
"""Time that the copies of one file may take: a busy machine tries fewer."""


def mutants(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yields copies with a few changes each, until there are so many or the time is up; at least ten."""
    rng = random.Random(seed)
    end = time.monotonic() + SECONDS
    for number in range(count):
        if number >= 10 and time.monotonic() > end:
            return
        copy = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 4, 8))):
            rng.choice(_CHANGES)(copy, rng)
        yield bytes(copy)


def _flip(copy: bytearray, rng: random.Random) -> None:
    if copy:
        copy[rng.randrange(len(copy))] ^= 1 << rng.randrange(8)


def _overwrite(copy: bytearray, rng: random.Random) -> None:
    start, value = rng.randrange(len(copy) + 1), rng.choice(EXTREMES)
    copy[start : start + len(value)] = value


def _cut(copy: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(copy) + 1)
    del copy[start : start + rng.choice((1, 4, 100, len(copy)))]


def _repeat(copy: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(copy) + 1)
    copy[start:start] = copy[start : start + rng.randrange(200)] * rng.choice((1, 1, 10))


def _insert(copy: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(copy) + 1)
    copy[start:start] = rng.randbytes(rng.randrange(1, 16))


_CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (_flip, _overwrite, _cut, _repeat, _insert)
