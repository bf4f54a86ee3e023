"""Stopping in an orderly way when a signal asks for it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

REPEATED = 1.0
"""Seconds after the first signal in which others say the same: torchrun forwards to its processes what a
scheduler has sent to all of them."""


class Stopped(KeyboardInterrupt):
    """A signal has asked the run to stop.

    Attributes:
        signum: which.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


class StopSignals:
    """Lets a first SIGINT or SIGTERM wait for the work in hand; a second one ends the process at once.

    Within `REPEATED` seconds it counts as the first one over again.

    Outside of the main thread, which alone gets signals, it does nothing.
    """

    def __init__(self) -> None:
        self._deferring = False
        self._signum: int | None = None

    @property
    def pending(self) -> int | None:
        """The signal that waits for the work in hand, None if there is none."""
        return self._signum

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Keeps a signal waiting until the block is done.

        Raises:
            Stopped: one has come meanwhile.
        """
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        if self._signum is not None:
            raise Stopped(self._signum)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catches the signals for the block, which `Stopped` may leave anywhere outside of `deferred`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        received, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        handlers = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        previous = signal.set_wakeup_fd(wakeup.fileno())
        watcher = threading.Thread(target=_end_at_second, args=[received], daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            wakeup.close()
            watcher.join()
            received.close()

    def _handle(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._signum is not None:
            return  # what the first one has begun goes on; the thread below decides
        self._signum = signum
        if not self._deferring:
            raise Stopped(signum)


def _end_at_second(received: socket.socket) -> None:
    """Ends the process at the second signal, unless it is the first one over again.

    Python calls a handler when the main thread comes to it, which may be seconds later while an operator
    runs; this thread learns of a signal at once.
    """
    stops = (byte[0] for byte in iter(lambda: received.recv(1), b"") if byte[0] in SIGNALS)
    if next(stops, None):
        os.write(2, b"stopping after the work in hand; once more stops at once\n")
    first = time.monotonic()
    for signum in stops:
        if time.monotonic() - first > REPEATED:
            os._exit(128 + signum)
