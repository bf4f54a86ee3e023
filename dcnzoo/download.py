"""Checkpoint files: fetched once, verified, kept in a cache folder.

A file gets its final name only when it is complete and its SHA-256 is right, by a rename within one
folder: whatever goes wrong on the way, no half file and no wrong file is ever found under that name.

    <home>/checkpoints/NAME            a complete file
    <home>/checkpoints/NAME.part       what has arrived of one, with NAME.part.json
    <home>/locks/NAME.lock             empty; locked by the process that downloads
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from dcnzoo.errors import ChecksumError, DcnzooError, DownloadError, without_credentials

if TYPE_CHECKING:
    from dcnzoo.manifest import Record
    from dcnzoo.transfer import Part, Patience

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20


def cache_home() -> Path:
    """Folder of everything that the package keeps: DCNZOO_HOME, or the platform's user cache folder."""
    if home := os.environ.get("DCNZOO_HOME"):
        return Path(home).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("dcnzoo", appauthor=False)


def cached_path(record: Record, cache_dir: Path | None = None) -> Path:
    """Where the cache has, or would have, a checkpoint's file.

    The name is the end of the address, less what means something to a file system.

    Args:
        record: the checkpoint.
        cache_dir: cache folder; `cache_home()` by default.
    """
    url = record.urls[0]
    last = PurePosixPath(unquote(urlsplit(url).path)).name
    name = PurePosixPath(re.sub(r"[^A-Za-z0-9._-]", "_", last)[-100:].lstrip(".") or "checkpoint")
    mark = (record.sha256 or hashlib.sha256(url.encode()).hexdigest())[:8]
    unique = name if mark in name.stem else f"{name.stem}-{mark}{name.suffix}"
    return (cache_dir or cache_home()) / "checkpoints" / unique


def checkpoint_path(record: Record, *, cache_dir: Path | None = None) -> Path:
    """Where a checkpoint's file lies, or will lie once it is fetched.

    A file:// address is used in place; what comes from the web lies in the cache, and its name carries
    the first digits of its hash, so that equally named files of two records do not collide.

    Args:
        record: the checkpoint.
        cache_dir: cache folder; `cache_home()` by default.
    """
    cached = cached_path(record, cache_dir)
    places = [_local_path(url) or cached for url in record.urls]
    return next((place for place in places if place.is_file()), places[0])


def fetch(
    record: Record,
    *,
    cache_dir: Path | None = None,
    progress: bool = True,
    url_base: str | None = None,
    patience: Patience | None = None,
) -> Path:
    """Gives a checkpoint's verified file, downloading it if it is not there.

    A file that is there is hashed again each time: that costs a tenth of a second for a ResNet-50, and
    neither a damaged disk nor a file put there by hand goes unnoticed. A cached file whose hash is wrong
    is replaced. Without a hash in the record (a user's own), a file that is there is taken as it is.

    An interrupted download goes on where it stopped, in this call or in a later one. Of several processes
    that want the same file, one downloads it and the others wait.

    Args:
        record: the checkpoint; its addresses are tried in order.
        cache_dir: cache folder; `cache_home()` by default.
        progress: whether to show a progress bar, on standard error, if that is a terminal.
        url_base: address of a mirror, see `mirrored`; by default the environment variable DCNZOO_MIRROR.
        patience: when to try an address again; `Patience.from_environment()` by default.

    Returns:
        Path of the file.

    Raises:
        DownloadError: no address gave the file (the last one's reason; earlier ones are logged as
            warnings), the disk is too small, the cache folder cannot be written, or the file would have
            to be downloaded and DCNZOO_OFFLINE forbids it.
        ChecksumError: what the last address gave is another file.
        DcnzooError: a setting in the environment makes no sense.
    """
    here = checkpoint_path(record, cache_dir=cache_dir)
    cached = cached_path(record, cache_dir)
    sources = [partial(_verified, here, record.sha256)] if here != cached or here.is_file() else []
    for url in record.urls:
        local = _local_path(url)
        if local is None and is_offline():
            sources.append(partial(_refuse, url, cached))
        elif local is None:
            sources.append(partial(_download, url, cached, record.sha256, url_base, progress, patience))
        elif local != here:
            sources.append(partial(_verified, local, record.sha256))
    for source in sources[:-1]:
        try:
            return source()
        except (DownloadError, ChecksumError) as error:
            logger.warning("%s; trying the next source", error)
    return sources[-1]()


def is_offline() -> bool:
    """Whether DCNZOO_OFFLINE forbids to use the network; set to 1, true, yes or on, it does."""
    return os.environ.get("DCNZOO_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def mirrored(url: str, url_base: str) -> str:
    """An address on a mirror: the mirror's own, followed by the path that the file has on its usual server.

    Args:
        url: "https://download.openmmlab.com/mmdetection/v2.0/dcn/x.pth".
        url_base: "http://mirror.example/openmmlab", for example.

    Returns:
        "http://mirror.example/openmmlab/mmdetection/v2.0/dcn/x.pth".

    Raises:
        DcnzooError: the mirror has no http(s) address.
    """
    check_url_base(url_base)
    parts = urlsplit(url)
    return url_base.rstrip("/") + parts.path + (f"?{parts.query}" if parts.query else "")


def check_url_base(url_base: str) -> None:
    """Checks the address of a mirror.

    Raises:
        DcnzooError: it is no http(s) address.
    """
    try:
        parts = urlsplit(url_base)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise DcnzooError(
            f"the mirror's address is {url_base!r}; expected one such as https://mirror.example/folder"
        )


@contextmanager
def locked(target: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a cached file for the block: who changes the file or its part has it.

    The operating system frees the lock of a process that dies.

    Args:
        target: path of the complete file in the cache.
        wait: whether to wait for a process that holds the lock.

    Raises:
        DownloadError: it is held, and `wait` is false.
        OSError: the lock's file cannot be made.
    """
    from filelock import FileLock, Timeout

    folder = target.parents[1] / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise DownloadError(target.name, "another process is downloading it") from error
        logger.warning("waiting for another process that is downloading %s", target.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def verify_sha256(path: Path, prefix: str) -> None:
    """Checks that a file is the expected one.

    Args:
        path: the file.
        prefix: first hex digits of its SHA-256.

    Raises:
        ChecksumError: they differ.
        OSError: the file cannot be read.
    """
    actual = sha256_of(path)
    if not actual.startswith(prefix.lower()):
        raise ChecksumError(str(path), prefix, actual, "it is damaged, or another file")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _local_path(url: str) -> Path | None:
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def _verified(path: Path, sha256: str | None) -> Path:
    try:
        if sha256:
            verify_sha256(path, sha256)
        else:
            path.open("rb").close()
    except OSError as error:
        raise DownloadError(path.as_uri(), f"it cannot be read: {error.strerror or error}") from error
    return path


def _refuse(url: str, target: Path) -> Path:
    raise DownloadError(url, f"DCNZOO_OFFLINE is set; get the file some other way and put it at {target}")


def _download(
    url: str,
    target: Path,
    sha256: str | None,
    url_base: str | None,
    progress: bool,
    patience: Patience | None,
) -> Path:
    """Downloads into the cache, unless another process does so first."""
    from dcnzoo.transfer import Part, Patience

    address = _address(url, sha256, url_base or os.environ.get("DCNZOO_MIRROR"))
    patience = patience or Patience.from_environment()
    with _file_errors(url, target), locked(target):
        if target.is_file():
            with suppress(ChecksumError):
                return _verified(target, sha256)
        target.parent.mkdir(exist_ok=True)
        part = Part(target)
        try:
            _complete(address, part, sha256, patience, progress, target.name)
            part.finish(target)
        finally:
            part.discard_if_useless()
    return target


def _address(url: str, sha256: str | None, url_base: str | None) -> str:
    """Where to fetch a file from: a mirror is trusted only with files whose hash is known."""
    if not url_base:
        return url
    if sha256 is None:
        logger.warning("%s has no SHA-256 in its manifest, so that no mirror can be used for it", url)
        return url
    return mirrored(url, url_base)


def _complete(
    url: str, part: Part, sha256: str | None, patience: Patience, progress: bool, title: str
) -> None:
    """Completes and verifies a part; one that several answers made up gets a second chance in one piece."""
    from dcnzoo.transfer import transfer

    for last in (False, True):
        transfer(url, part, patience, title=title, progress=progress)
        if sha256 is None:
            return
        try:
            verify_sha256(part.path, sha256)
            return
        except ChecksumError as error:
            wrong = ChecksumError(
                without_credentials(url),
                sha256,
                error.actual,
                "it is not the published file and was deleted",
            )
        part.discard()
        if last or not part.pieced:
            raise wrong
        logger.warning("%s; it was fetched in pieces, starting over", wrong)


@contextmanager
def _file_errors(url: str, target: Path) -> Iterator[None]:
    """Turns an OSError of the block into a DownloadError."""
    try:
        yield
    except OSError as error:
        reason = f"cannot write to {target.parent} ({error.strerror or error})"
        cure = "set DCNZOO_HOME to a writable folder with enough space"
        raise DownloadError(url, f"{reason}; {cure}") from error
