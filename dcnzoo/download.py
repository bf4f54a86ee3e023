"""Checkpoint files: fetched once, verified, kept in a cache folder.

A file gets its final name only when it is complete and its SHA-256 is right, by a rename within one
folder: whatever goes wrong on the way, no half file and no wrong file is ever found under that name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, NoReturn
from urllib.parse import unquote, urlsplit

from dcnzoo.errors import ChecksumError, DownloadError

if TYPE_CHECKING:
    from requests import Response
    from tqdm import tqdm

    from dcnzoo.manifest import Record

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0  # between two pieces of the answer, not for the whole of it
CHUNK_BYTES = 1 << 20


def cache_home() -> Path:
    """Folder of everything that the package keeps: DCNZOO_HOME, or the platform's user cache folder."""
    if home := os.environ.get("DCNZOO_HOME"):
        return Path(home).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("dcnzoo", appauthor=False)


def checkpoint_path(record: Record, *, cache_dir: Path | None = None) -> Path:
    """Where a checkpoint's file lies, or will lie once it is fetched.

    A file:// address is used in place; what comes from the web lies in the cache, and its name carries
    the first digits of its hash, so that equally named files of two records do not collide.

    Args:
        record: the checkpoint.
        cache_dir: cache folder; `cache_home()` by default.
    """
    cached = _cached_path(record, cache_dir)
    places = [_local_path(url) or cached for url in record.urls]
    return next((place for place in places if place.is_file()), places[0])


def fetch(record: Record, *, cache_dir: Path | None = None, progress: bool = True) -> Path:
    """Gives a checkpoint's verified file, downloading it if it is not there.

    A file that is there is hashed again each time: that costs a tenth of a second for a ResNet-50, and
    neither a damaged disk nor a file put there by hand goes unnoticed. A cached file whose hash is wrong
    is replaced. Without a hash in the record (a user's own), a file that is there is taken as it is.

    Args:
        record: the checkpoint; its addresses are tried in order.
        cache_dir: cache folder; `cache_home()` by default.
        progress: whether to show a progress bar, on standard error, if that is a terminal.

    Returns:
        Path of the file.

    Raises:
        DownloadError: no address gave the file (the last one's reason; earlier ones are logged as
            warnings), or the cache folder cannot be written.
        ChecksumError: what the last address gave is another file.
    """
    here = checkpoint_path(record, cache_dir=cache_dir)
    cached = _cached_path(record, cache_dir)
    sources = [partial(_verified, here, record.sha256)] if here != cached or here.is_file() else []
    for url in record.urls:
        local = _local_path(url)
        if local is None:
            sources.append(partial(_download, url, cached, record.sha256, progress))
        elif local != here:
            sources.append(partial(_verified, local, record.sha256))
    for source in sources[:-1]:
        try:
            return source()
        except (DownloadError, ChecksumError) as error:
            logger.warning("%s; trying the next source", error)
    return sources[-1]()


def verify_sha256(path: Path, prefix: str) -> None:
    """Checks that a file is the expected one.

    Args:
        path: the file.
        prefix: first hex digits of its SHA-256.

    Raises:
        ChecksumError: they differ.
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    if not digest.hexdigest().startswith(prefix.lower()):
        raise ChecksumError(str(path), prefix, digest.hexdigest(), "it is damaged, or another file")


def _local_path(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _cached_path(record: Record, cache_dir: Path | None) -> Path:
    """The cache's file for a record: the end of its address, less what means something to a file system."""
    url = record.urls[0]
    last = PurePosixPath(unquote(urlsplit(url).path)).name
    name = PurePosixPath(re.sub(r"[^A-Za-z0-9._-]", "_", last)[-100:].lstrip(".") or "checkpoint")
    mark = (record.sha256 or hashlib.sha256(url.encode()).hexdigest())[:8]
    unique = name if mark in name.stem else f"{name.stem}-{mark}{name.suffix}"
    return (cache_dir or cache_home()) / "checkpoints" / unique


def _verified(path: Path, sha256: str | None) -> Path:
    try:
        if sha256:
            verify_sha256(path, sha256)
        else:
            path.open("rb").close()
    except OSError as error:
        raise DownloadError(path.as_uri(), f"it cannot be read: {error.strerror or error}") from error
    return path


def _download(url: str, target: Path, sha256: str | None, progress: bool) -> Path:
    digest = hashlib.sha256()
    with _renamed_when_done(target, url) as part:
        for chunk in _stream(url, target.name, progress):
            part.write(chunk)
            digest.update(chunk)
        if sha256 and not digest.hexdigest().startswith(sha256):
            raise ChecksumError(
                url, sha256, digest.hexdigest(), "it is not the published file and was deleted"
            )
    return target


@contextmanager
def _renamed_when_done(target: Path, url: str) -> Iterator[BinaryIO]:
    """A new file beside the target, which takes its name if the block ends well and is deleted if not."""
    part = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        reason = f"cannot write to {target.parent} ({error.strerror or error})"
        cure = "set DCNZOO_HOME to a writable folder with enough space"
        raise DownloadError(url, f"{reason}; {cure}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _stream(url: str, title: str, progress: bool) -> Iterator[bytes]:
    """The pieces of what the server sends; raises DownloadError for whatever goes wrong with the network."""
    import requests
    from urllib3.exceptions import HTTPError  # requests lets some through

    received = 0
    seconds = (CONNECT_SECONDS, READ_SECONDS)
    # Uncompressed, so that Content-Length counts the bytes that arrive here.
    headers = {"Accept-Encoding": "identity"}
    try:
        with requests.get(url, stream=True, timeout=seconds, headers=headers) as response:
            if not response.ok:
                raise DownloadError(url, f"the server answered {response.status_code} {response.reason}")
            total = _content_length(response)
            with _progress_bar(title, total, progress) as bar:
                for chunk in response.iter_content(CHUNK_BYTES):
                    received += len(chunk)
                    bar.update(len(chunk))
                    yield chunk
    except (requests.RequestException, HTTPError) as error:
        raise DownloadError(url, _root_cause(error)) from error
    if total not in (None, received):
        raise DownloadError(url, f"the server announced {total} bytes and sent {received}")


def _content_length(response: Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None


def _progress_bar(title: str, total: int | None, wanted: bool) -> tqdm[NoReturn]:
    from tqdm import tqdm

    return tqdm(
        desc=title,
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        # The long name last: it is what a narrow terminal cuts off.
        bar_format="{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} [{remaining}, {rate_fmt}] {desc}",
        disable=not (wanted and sys.stderr.isatty()),
    )


def _root_cause(error: BaseException) -> str:
    """What the network stack said first, without the layers around it."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
