"""Reading images in processes of their own, so that what an image does to the decoder harms no other.

A decoder is much code that handles bytes from anywhere: it may crash, hang or ask for all memory. It does so
here in a process that is started anew when it dies and killed when it takes too long.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from queue import LifoQueue
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from dcnzoo.errors import ImageReadError
from dcnzoo.image import PreparedImage, prepare_image
from dcnzoo.manifest import Preprocessing
from dcnzoo.sources import read_image
from dcnzoo.times import StageTimes

if TYPE_CHECKING:
    from numpy.typing import NDArray

ATTEMPTS = 2
"""A process that dies is not always the image's fault."""


@dataclass(frozen=True)
class ReadSettings:
    """How images are read.

    Attributes:
        short_side: limit of the short side after resizing, pixels.
        long_side: limit of the long side after resizing, pixels.
        keep_pixels: whether the pixels of the original size are wanted too.
        max_pixels: larger images are refused; None leaves Pillow's limit.
    """

    short_side: int
    long_side: int
    keep_pixels: bool = False
    max_pixels: int | None = None


class ReadImage(NamedTuple):
    """An image that was read.

    Attributes:
        prepared: resized for the model.
        pixels: (H, W, 3) RGB, None unless wanted.
        times: seconds that it took.
    """

    prepared: PreparedImage
    pixels: NDArray[np.uint8] | None
    times: StageTimes


def read_prepared(location: str, settings: ReadSettings, short_side: int | None = None) -> ReadImage:
    """Reads and resizes an image in this process.

    Args:
        location: path or http(s) address.
        settings: how.
        short_side: of this image, in place of the settings' own.

    Raises:
        ImageReadError: it cannot be read.
    """
    times = StageTimes()
    try:
        with times.measure("decode"):
            pixels = read_image(location)
        with times.measure("preprocess"):
            sides = Preprocessing(short_side or settings.short_side, settings.long_side)
            prepared = prepare_image(pixels, sides)
    except MemoryError as error:
        raise ImageReadError(location, "there is not enough memory for it") from error
    return ReadImage(prepared, pixels if settings.keep_pixels else None, times)


@contextmanager
def pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Sets Pillow's limit against decompression bombs, which is the process's, for the block."""
    before = Image.MAX_IMAGE_PIXELS
    if max_pixels is not None:
        # Pillow warns above its limit, and refuses above twice the limit.
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)
    try:
        with warnings.catch_warnings():
            # Large images below the limit and oddities in their headers: nothing that a user can act on.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


class ImageReaders:
    """Processes that read images, for as many threads. A process starts when it is first needed.

    Args:
        count: of processes; with 0, images are read in this process, where nothing guards against them.
        settings: how to read.
        timeout: seconds that an image may take, None for any time.
    """

    def __init__(self, count: int, settings: ReadSettings, timeout: float | None = None) -> None:
        self._settings = settings
        self._readers = [_ReaderProcess(settings, timeout) for _ in range(count)]
        self._idle: LifoQueue[_ReaderProcess] = LifoQueue()
        for reader in self._readers:
            self._idle.put(reader)

    def read(self, location: str, short_side: int | None = None) -> ReadImage:
        """Reads and resizes an image; called by at most as many threads at a time as there are processes.

        Args:
            location: path or http(s) address.
            short_side: of this image, in place of the settings' own.

        Raises:
            ImageReadError: it cannot be read, takes too long, or ends the process that reads it.
        """
        if not self._readers:
            return read_prepared(location, self._settings, short_side)
        reader = self._idle.get()
        try:
            return reader.read(location, short_side)
        finally:
            self._idle.put(reader)

    def __enter__(self) -> ImageReaders:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        for reader in self._readers:
            reader.close()


class _ReaderProcess:
    """One process, started anew when it has ended."""

    def __init__(self, settings: ReadSettings, timeout: float | None) -> None:
        self._settings, self._timeout = settings, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._starting, self._reading = threading.Lock(), threading.Lock()

    def read(self, location: str, short_side: int | None) -> ReadImage:
        reason = "reading was stopped"
        with self._reading:
            for _ in range(ATTEMPTS):
                process, expired = self._running(), threading.Event()
                if process is None:
                    break
                timer = threading.Timer(self._timeout or threading.TIMEOUT_MAX, _kill, [process, expired])
                timer.daemon = True
                timer.start()
                try:
                    return _ask(process, location, short_side)
                except (EOFError, BrokenPipeError):
                    reason = f"the process that read it ended with {_exit_name(_end(process))}"
                finally:
                    timer.cancel()
                if expired.is_set():
                    reason = f"it takes longer than {self._timeout:g} s (--image-timeout)"
                    break
        raise ImageReadError(location, reason)

    def close(self) -> None:
        with self._starting:
            self._closed = True
            if self._process:
                self._process.kill()
        with self._reading:  # that ends with the process
            if self._process:
                _end(self._process)

    def _running(self) -> subprocess.Popen[bytes] | None:
        """Returns the process, if need be a new one; None after `close`."""
        with self._starting:
            if self._closed:
                return None
            if self._process is None or self._process.poll() is not None:
                if self._process:
                    _end(self._process)
                self._process = _start(self._settings)
            return self._process


def _end(process: subprocess.Popen[bytes]) -> int:
    """Waits for a process that ends, closes its pipes, and returns its exit code."""
    code = process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(BrokenPipeError):
                pipe.close()
    return code


def _start(settings: ReadSettings) -> subprocess.Popen[bytes]:
    # This process's own path comes first of all, so that nothing is imported from the working directory.
    code = "import sys; sys.path = sys.argv[2:]; from dcnzoo.reader import serve; serve(sys.argv[1])"
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(asdict(settings)), *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C in the terminal is for the program, which lets readers finish
    )


def _kill(process: subprocess.Popen[bytes], expired: threading.Event) -> None:
    expired.set()
    process.kill()


def _exit_name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"code {code}"


def _ask(process: subprocess.Popen[bytes], location: str, short_side: int | None) -> ReadImage:
    """Has a process read an image.

    Raises:
        ImageReadError: it cannot be read.
        EOFError, BrokenPipeError: the process has ended.
    """
    _send(process.stdin, {"location": location, "short_side": short_side})
    answer = _receive(process.stdout)
    if "error" in answer:
        raise ImageReadError(location, answer["error"])
    arrays = [_receive_array(process.stdout, shape) for shape in answer["shapes"]]
    times = StageTimes()
    times.update(answer["times"])
    prepared = PreparedImage(arrays[0], (answer["original_size"][0], answer["original_size"][1]))
    return ReadImage(prepared, arrays[1] if len(arrays) > 1 else None, times)


def serve(settings: str) -> None:
    """Reads the images that standard input names, until it ends; what one of these processes does.

    Args:
        settings: how, a `ReadSettings` in JSON.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # whoever started it decides when it ends
    requests = sys.stdin.buffer
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a library prints must not get among the answers
        chosen = ReadSettings(**json.loads(settings))
        with pixel_limit(chosen.max_pixels):
            for line in requests:
                try:
                    _answer(answers, json.loads(line), chosen)
                except BrokenPipeError:
                    os._exit(1)  # nobody is left to hear it


def _answer(answers: IO[bytes], request: dict[str, Any], settings: ReadSettings) -> None:
    try:
        read = read_prepared(request["location"], settings, request["short_side"])
    except ImageReadError as error:
        _send(answers, {"error": error.reason})
        return
    arrays = [array for array in (read.prepared.pixels, read.pixels) if array is not None]
    original_size, shapes = read.prepared.original_size, [array.shape for array in arrays]
    _send(answers, {"original_size": original_size, "shapes": shapes, "times": read.times})
    for array in arrays:
        answers.write(array.tobytes())
    answers.flush()


def _send(pipe: IO[bytes] | None, message: dict[str, Any]) -> None:
    if pipe is None:
        raise EOFError
    pipe.write(json.dumps(message).encode("ascii") + b"\n")
    pipe.flush()


def _receive(pipe: IO[bytes] | None) -> dict[str, Any]:
    line = pipe.readline() if pipe else b""
    if not line.endswith(b"\n"):
        raise EOFError
    message: dict[str, Any] = json.loads(line)
    return message


def _receive_array(pipe: IO[bytes] | None, shape: list[int]) -> NDArray[np.uint8]:
    array = np.empty(shape, np.uint8)
    left = memoryview(array.data).cast("B")
    while left:
        count = pipe.readinto(left) if pipe else 0  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        left = left[count:]
    return array
