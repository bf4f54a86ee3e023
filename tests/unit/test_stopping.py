"""A first signal waits for the work in hand, a second one does not. Each case is a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dcnzoo.stopping import REPEATED, SIGNALS, StopSignals

PROGRAM = """
import sys, time
from dcnzoo.stopping import Stopped, StopSignals

signals = StopSignals()
try:
    with signals.caught():
        {work}
except Stopped as stopped:
    print("stopped by", stopped, flush=True)
    sys.exit(128 + stopped.signum)
"""

BETWEEN = """
        print("ready", flush=True)
        for _ in range(600):  # a signal right before a long sleep would wait for its end
            time.sleep(0.1)
"""
CLEARING_UP = """
        try:
            print("ready", flush=True)
            for _ in range(600):
                time.sleep(0.1)
        finally:
            end = time.monotonic() + 2
            while time.monotonic() < end:
                pass
            print("cleared up", flush=True)
"""
IN_HAND = """
        with signals.deferred():
            print("ready", flush=True)
            end = time.monotonic() + 2
            while time.monotonic() < end:
                pass
            print("work done", flush=True)
        print("too late", flush=True)
"""
# Calls that come back to Python after a long time only, as a large operator does.
IN_HAND_FOR_LONG = """
        import ctypes
        with signals.deferred():
            print("ready", flush=True)
            library = ctypes.CDLL(None)
            for _ in range(3):  # a signal ends one of these
                library.sleep(60)
"""


@contextmanager
def running(work: str) -> Iterator[subprocess.Popen[str]]:
    code = PROGRAM.format(work=work.strip())
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("signum", SIGNALS)
def test_between_pieces_of_work(signum: signal.Signals) -> None:
    with running(BETWEEN) as process:
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + signum, f"stopped by {signum.name}\n")
    assert "once more stops at once" in err


def test_one_that_comes_twice_at_once_does_not_disturb_the_clearing_up() -> None:
    with running(CLEARING_UP) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + signal.SIGTERM, "cleared up\nstopped by SIGTERM\n")


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_work_in_hand_is_finished(signum: signal.Signals) -> None:
    with running(IN_HAND) as process:
        process.send_signal(signum)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + signum, f"work done\nstopped by {signum.name}\n")


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_second_signal_stops_at_once(signum: signal.Signals) -> None:
    with running(IN_HAND_FOR_LONG) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(REPEATED + 0.2)
        assert process.poll() is None
        process.send_signal(signum)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + signum, "")


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_repetition_is_no_second_signal(signum: signal.Signals) -> None:
    with running(IN_HAND) as process:
        process.send_signal(signum)
        time.sleep(0.2)
        process.send_signal(signum)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + signum, f"work done\nstopped by {signum.name}\n")


def test_the_handlers_are_put_back() -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with StopSignals().caught():
        assert [signal.getsignal(signum) for signum in SIGNALS] != before
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_other_threads_get_no_signals() -> None:
    entered = []

    def enter() -> None:
        with StopSignals().caught():
            entered.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [before]
