"""Processes of the program as tests see them, from their start to their end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",  # sums of floats depend on how threads share them
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONPATH": os.pathsep.join(sys.path),
}
"""Of every process: one thread, no GPU."""


class Life:
    """A process of the program; leaving the context kills it if need be."""

    def __init__(self, answers: IO[str]) -> None:
        self._answers = answers
        self._code: int | None = None
        self.pid = self._answer("process")

    def end(self) -> int:
        """Waits for the process and gives its exit code."""
        if self._code is None:
            self._code = self._answer("ended")
        return self._code

    def _answer(self, kind: str) -> int:
        answered, number = self._answers.readline().split()
        assert answered == kind
        return int(number)

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *_: object) -> None:
        if self._code is None:
            self.send(signal.SIGKILL)
            self.end()

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def readers(self) -> list[int]:
        """Processes that read images for it."""
        threads = Path(f"/proc/{self.pid}/task").iterdir()
        return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]


class Server:
    """What starts processes: `tests.e2e.lives`, at the other end of a pipe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin
        assert process.stdout
        self._requests, self._answers = process.stdin, process.stdout

    def start(self, arguments: Sequence[str], setup: str = "") -> Life:
        """Starts the program with these arguments, after these statements."""
        self._requests.write(json.dumps({"arguments": arguments, "setup": setup}) + "\n")
        self._requests.flush()
        return Life(self._answers)


@contextmanager
def serving(folder: Path, *model: str) -> Iterator[Server]:
    """Serves processes that run in a folder.

    Args:
        folder: they run in it.
        model: weights, architecture, short and long side; loaded once for all if given.
    """
    command = [sys.executable, "-m", "tests.e2e.lives", *model]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield Server(process)
        process.stdin.close()
