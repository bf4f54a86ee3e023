"""One file over HTTP, over as many connections as it takes.

What has arrived stays on disk as a part, with a note of what it is a part of. The next connection, be it
of this run or of a later one, asks for the rest only, and only if the server still has the same file.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dcnzoo import __version__
from dcnzoo.errors import DcnzooError, DownloadError, without_credentials

if TYPE_CHECKING:
    from requests import Response
    from tqdm import tqdm

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
LONGEST_DELAY_SECONDS = 30.0
CHUNK_BYTES = 1 << 16

PART_SUFFIX, NOTE_SUFFIX = ".part", ".part.json"

PROGRESS_BYTES = 1 << 20
"""A connection that brought so much was no failure: the count of retries starts again."""

SLOWEST_BYTES_PER_SECOND = 1024
"""Anything slower is a stall, even if a byte drips in now and then."""


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and how often to ask again.

    Attributes:
        retries: attempts after the first one, counted anew whenever a megabyte has arrived.
        timeout: seconds without data, or nearly so, after which a connection counts as stalled.
        first_delay: seconds before the first retry, give or take half; doubled for each further one.
        longest_wait: seconds; a server that asks for more (Retry-After) is not waited for.
        sleep: how to wait.
    """

    retries: int = 5
    timeout: float = 30.0
    first_delay: float = 0.5
    longest_wait: float = 300.0
    sleep: Callable[[float], object] = time.sleep

    @classmethod
    def from_environment(cls) -> Patience:
        """The usual patience, with DCNZOO_RETRIES and DCNZOO_TIMEOUT (seconds) where they are set.

        Raises:
            DcnzooError: one of them is no such number.
        """
        retries = _number_of_environment("DCNZOO_RETRIES", cls.retries, least=0)
        return cls(int(retries), _number_of_environment("DCNZOO_TIMEOUT", cls.timeout, least=0.1))

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row; random, lest all clients come back at once."""
        return min(self.first_delay * 2.0 ** (failures - 1), LONGEST_DELAY_SECONDS) * random.uniform(0.5, 1.5)


@dataclass(frozen=True)
class Origin:
    """What a part is a part of.

    Attributes:
        url: where it comes from, without credentials.
        validator: what tells this version of the file from others, for If-Range; None if nothing does.
        total: length of the whole file in bytes, None where unknown.
    """

    url: str
    validator: str | None
    total: int | None


class Part:
    """What has arrived of a file: `NAME.part`, and `NAME.part.json` with its origin.

    Attributes:
        path: where the bytes are.
        pieced: whether they are from several answers, so that one of them may be of another file.

    Args:
        target: the path that the file gets when it is complete.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + PART_SUFFIX)
        self.pieced = False
        self._note = target.with_name(target.name + NOTE_SUFFIX)

    @property
    def size(self) -> int:
        """Number of bytes that have arrived."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def origin(self) -> Origin | None:
        """What the bytes are a part of; None if there are none, or if that cannot be told."""
        try:
            note = json.loads(self._note.read_bytes())
            origin = Origin(note["url"], note["validator"], note["total"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        # Anything else than printable ASCII could not be sent back in a header.
        usable = isinstance(origin.validator, str) and re.fullmatch("[ -~]+", origin.validator)
        return origin if usable and isinstance(origin.total, int | None) and self.size else None

    def start(self, origin: Origin) -> None:
        """Forgets what has arrived and begins anew."""
        # Bytes before their note: whenever the process is killed, no note is about bytes of another file.
        self.path.open("wb").close()
        self._note.write_text(json.dumps(asdict(origin), indent=2) + "\n", encoding="utf-8")
        self.pieced = False

    def discard(self) -> None:
        """Deletes the part."""
        for path in (self.path, self._note):
            path.unlink(missing_ok=True)

    def discard_if_useless(self) -> None:
        """Deletes the part if no later request can go on from it; errors are ignored."""
        if self.origin is None:
            with suppress(OSError):
                self.discard()

    def finish(self, target: Path) -> None:
        """Makes the part, which is complete, the file."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
        self.path.replace(target)
        self._note.unlink(missing_ok=True)


def transfer(url: str, part: Part, patience: Patience, *, title: str, progress: bool) -> None:
    """Completes a part from the web.

    Args:
        url: http(s) address of the file.
        part: what has arrived so far; its folder exists.
        patience: when to try again.
        title: name of the file, for the progress bar.
        progress: whether to show one, on standard error, if that is a terminal.

    Raises:
        DownloadError: the server does not give the file, or the disk is too small for it.
        OSError: the part cannot be written.
    """
    failures, furthest = 0, part.size
    while True:
        try:
            return _attempt(url, part, patience, title, progress)
        except _InterruptedError as error:
            if part.size - furthest >= PROGRESS_BYTES:
                failures = 0
            failures, furthest = failures + 1, max(furthest, part.size)
            _wait(url, error, failures, patience)


def readable_size(size: int) -> str:
    """A number of bytes for people: "159.4 MiB"."""
    power = min(max(size.bit_length() - 1, 0) // 10, 4)
    return f"{size / 1024**power:.1f} {'_KMGT'[power]}iB" if power else f"{size} bytes"


class _InterruptedError(Exception):
    """An attempt failed in a way that another one may not; `wait` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        self.reason, self.wait = reason, wait
        super().__init__(reason)


def _wait(url: str, error: _InterruptedError, failures: int, patience: Patience) -> None:
    """Waits before the next attempt, or gives up."""
    if failures > patience.retries:
        tried = f" (tried {failures} times)" if failures > 1 else ""
        raise DownloadError(url, error.reason + tried) from error
    if error.wait > patience.longest_wait:
        reason = f"{error.reason} and asks to come back in {error.wait:.0f} seconds"
        raise DownloadError(url, reason) from error
    seconds = max(error.wait, patience.delay(failures))
    logger.warning(
        "%s: %s; trying again in %.1f s (%d of %d)",
        without_credentials(url),
        error.reason,
        seconds,
        failures,
        patience.retries,
    )
    patience.sleep(seconds)


def _attempt(url: str, part: Part, patience: Patience, title: str, progress: bool) -> None:
    """Makes one request and takes what it brings."""
    origin = part.origin
    if origin is not None and origin.url != without_credentials(url):
        origin = None
    if origin is not None and origin.total == part.size:
        part.pieced = True
        return
    with _answer(url, _headers(part, origin), patience.timeout) as response:
        total = _begin(url, response, part, origin)
        _check_space(url, part, total)
        with (
            part.path.open("ab") as file,
            _progress_bar(title, total, part.size, progress) as bar,
        ):
            for chunk in _chunks(response, patience.timeout):
                file.write(chunk)
                file.flush()  # what has arrived outlives even a killed process
                bar.update(len(chunk))
                if total is not None and file.tell() > total:
                    break
    if total is not None and part.size > total:
        part.discard()
        raise _InterruptedError(f"the server announced {total} bytes and sent more")
    if total not in (None, part.size):
        raise _InterruptedError(f"the server announced {total} bytes and sent {part.size}")


def _headers(part: Part, origin: Origin | None) -> dict[str, str]:
    headers = {
        "User-Agent": f"dcnzoo/{__version__}",
        "Accept-Encoding": "identity",  # so that lengths and ranges count the bytes that arrive here
    }
    if origin is not None and origin.validator is not None:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": origin.validator}
    return headers


@contextmanager
def _answer(url: str, headers: dict[str, str], timeout: float) -> Iterator[Response]:
    """The server's answer; sorts what goes wrong with the network meanwhile into passing and lasting."""
    import requests
    from urllib3.exceptions import HTTPError  # requests lets some through

    outside = sys.exc_info()[1]
    try:
        with requests.get(url, stream=True, timeout=(CONNECT_SECONDS, timeout), headers=headers) as response:
            yield response
    except (requests.RequestException, HTTPError) as error:
        cause = _root_cause(error, outside)
        hopeless = ValueError, requests.TooManyRedirects  # addresses that cannot be are ValueErrors
        if isinstance(error, hopeless) or _is_lasting(cause):
            raise DownloadError(url, _in_words(cause)) from error
        raise _InterruptedError(_in_words(cause)) from error


def _is_lasting(cause: BaseException) -> bool:
    unknown_host = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
    return unknown_host or isinstance(cause, ssl.SSLCertVerificationError)


def _begin(url: str, response: Response, part: Part, origin: Origin | None) -> int | None:
    """Makes the part ready for what the answer brings; gives the length of the whole file, if it is known."""
    asked = "Range" in response.request.headers
    if asked and response.status_code == 416:
        part.discard()
        raise _InterruptedError("the file on the server has become shorter")
    if not response.ok:
        reason = f"the server answered {response.status_code} {response.reason}"
        if response.status_code in (408, 429) or response.status_code >= 500:
            raise _InterruptedError(reason, _retry_after(response))
        raise DownloadError(url, reason)
    if response.status_code != 206:
        origin = Origin(without_credentials(url), _validator(response), _content_length(response))
        part.start(origin)
        return origin.total
    whole = re.fullmatch(rf"bytes {part.size}-\d+/(\d{{1,18}}|\*)", response.headers.get("Content-Range", ""))
    if origin is None or whole is None or not _is_same_file(origin, whole[1], response):
        part.discard()
        raise _InterruptedError("the server sent a piece that does not fit what has arrived")
    part.pieced = True
    return origin.total if whole[1] == "*" else int(whole[1])


def _is_same_file(origin: Origin, total: str, response: Response) -> bool:
    """Whether a piece is of the file that the part is of: not every server heeds If-Range."""
    same_length = total == "*" or origin.total in (None, int(total))
    same_version = _validator(response) in (None, origin.validator)
    return same_length and same_version and "Content-Encoding" not in response.headers


def _validator(response: Response) -> str | None:
    """What If-Range may name: a strong ETag, or else the time of the last change."""
    if "Content-Encoding" in response.headers:
        return None  # the bytes that arrive here are not those that ranges count
    etag = response.headers.get("ETag")
    if etag is not None and etag.startswith('"'):
        return etag
    return response.headers.get("Last-Modified")


def _content_length(response: Response) -> int | None:
    length = re.fullmatch(r"\d{1,18}", response.headers.get("Content-Length", ""), re.ASCII)
    return int(length[0]) if length and "Content-Encoding" not in response.headers else None


def _retry_after(response: Response) -> float:
    """Seconds that the server asks to wait: it may say how many, or until when."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _check_space(url: str, part: Part, total: int | None) -> None:
    """Raises DownloadError if the rest of the file does not fit on the disk."""
    folder = part.path.parent
    needed, free = (total or 0) - part.size, shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            url,
            f"it needs {readable_size(needed)} and {folder} has {readable_size(free)} left;"
            " free some space, or set DCNZOO_HOME to a folder on another disk",
        )


def _chunks(response: Response, timeout: float) -> Iterator[bytes]:
    """The pieces of an answer as they arrive; a timeout if hardly anything does."""
    import requests

    start, received = time.monotonic(), 0
    while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
        yield chunk
        received += len(chunk)
        seconds = time.monotonic() - start
        if seconds > timeout:
            if received < SLOWEST_BYTES_PER_SECOND * seconds:
                raise requests.ReadTimeout(f"stalled: {received} bytes in {seconds:.0f} seconds")
            start, received = time.monotonic(), 0


def _progress_bar(title: str, total: int | None, initial: int, wanted: bool) -> tqdm[NoReturn]:
    from tqdm import tqdm

    return tqdm(
        desc=title,
        total=total,
        initial=initial,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        # The long name last: it is what a narrow terminal cuts off.
        bar_format="{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{remaining}, {rate_fmt}] {desc}",
        disable=not (wanted and sys.stderr.isatty()),
    )


def _root_cause(error: BaseException, outside: BaseException | None) -> BaseException:
    """What the network stack said first; not what the caller was busy with when it was asked."""
    while (inner := error.__cause__ or error.__context__) is not None and inner is not outside:
        error = inner
    return error


def _in_words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _number_of_environment(name: str, default: float, least: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number < 1e6:
        raise DcnzooError(f"{name} is {text!r}, expected a number of at least {least:g}")
    return number
