"""Calling a function in a fresh process, whatever becomes of it."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

from dcnzoo.errors import DcnzooError

T = TypeVar("T")


def run_apart(function: Callable[[], T]) -> T:
    """Calls a function in a fresh process.

    Args:
        function: it and what it returns can be pickled.

    Returns:
        What the function returns.

    Raises:
        MemoryError: the function raised it, or the system killed the process.
        DcnzooError: the function raised it.
        RuntimeError: it raised another exception, or the process died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_outcome, args=(sender, function))
    process.start()
    sender.close()
    try:
        outcome, trace = receiver.recv()
    except EOFError:
        process.join()
        raise _death(process.exitcode) from None
    except BaseException:
        process.kill()
        raise
    process.join()
    if isinstance(outcome, Exception):
        raise outcome from RuntimeError(f"in the process that measures:\n{trace}")
    result: T = outcome
    return result


def _send_outcome(sender: Connection, function: Callable[[], object]) -> None:
    try:
        sender.send((function(), ""))
    except Exception as error:
        # Not every exception survives pickling; these do.
        kinds = (kind for kind in (MemoryError, DcnzooError) if isinstance(error, kind))
        outcome = next(kinds, None)
        message = str(error) if outcome else f"{type(error).__name__}: {error}"
        sender.send(((outcome or RuntimeError)(message), traceback.format_exc()))


def _death(exit_code: int | None) -> Exception:
    if exit_code == -signal.SIGKILL:
        return MemoryError("the system killed the process")
    return RuntimeError(f"the process that measures died with exit code {exit_code}")
