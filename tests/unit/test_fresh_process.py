"""A function in a fresh process, and everything that may become of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial

import pytest

from dcnzoo.errors import DcnzooError, ImageReadError
from dcnzoo.fresh_process import run_apart
from dcnzoo.hardware import peak_resident


def fail(error: type[Exception], *arguments: str) -> None:
    raise error(*arguments)


def die(signal_number: int) -> None:
    os.kill(os.getpid(), signal_number)


def test_returns_what_the_function_returns() -> None:
    assert run_apart(partial(pow, 2, 5)) == 32


def test_is_another_process() -> None:
    assert run_apart(os.getpid) != os.getpid()


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (partial(fail, MemoryError, "too large"), MemoryError, "^too large$"),
        (partial(fail, ImageReadError, "a.jpg", "broken"), DcnzooError, "^cannot read image a.jpg: broken$"),
        (partial(fail, KeyError, "x"), RuntimeError, "^KeyError: 'x'$"),
        (partial(die, signal.SIGKILL), MemoryError, "the system killed the process"),
        (partial(die, signal.SIGTERM), RuntimeError, "died with exit code -15"),
        (partial(os._exit, 3), RuntimeError, "died with exit code 3"),
    ],
)
def test_failures(function: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run_apart(function)


def test_the_cause_shows_where() -> None:
    with pytest.raises(RuntimeError) as raised:
        run_apart(partial(fail, KeyError, "x"))
    assert "in fail\n" in str(raised.value.__cause__)


def test_does_not_see_the_peak_of_its_parent() -> None:
    held = b"x" * 300_000_000
    assert peak_resident() > len(held)
    assert 1_000_000 < run_apart(peak_resident) < len(held)
