"""Where images come from: files, folders, globs, lists of paths, addresses, standard input."""

from __future__ import annotations

import glob
import logging
import os
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, takewhile
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from dcnzoo.download import is_offline
from dcnzoo.errors import ImageReadError, SourceError, without_credentials
from dcnzoo.run_folder import RUN_FILE, pictures_in

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

STDIN = "-"
LIST_SUFFIX = ".txt"
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Files with one of these suffixes are taken from folders and globs; a file that is named is always taken."""

TIMEOUT_SECONDS = 30
MAX_DOWNLOAD_BYTES = 512 * 2**20
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class ImageSource:
    """One image to read.

    Attributes:
        location: path or http(s) address, to read from.
        name: relative path, suffix included, under which results are filed; never leaves its root.
    """

    location: str
    name: PurePosixPath

    @property
    def shown(self) -> str:
        """The location as results, journals and messages have it: without credentials."""
        return without_credentials(self.location)


def find_images(sources: Sequence[str], exclude: Iterable[Path] = ()) -> Iterator[ImageSource]:
    """Lists the images of several sources, in order and lazily.

    A source is an image file, a folder (searched recursively, in alphabetical order, without hidden
    files), a glob, a `.txt` file with one path or address per line, an http(s) address, or `-` for lines
    on standard input. Lines are relative to the working directory, or else to their list's folder. Empty
    ones are skipped, and in a file those that begin with `#`. A `file:` address is the path that it stands
    for.

    Args:
        sources: what the user named.
        exclude: folders to leave out of searches: those that the results go to.

    Yields:
        The images. Those of a folder are named relative to it, those of one of several folders with the
        folder's name in front. Pictures that other runs have made (annotated ones, crops, curves) are left
        out where they lie below a source; a warning names them.

    Raises:
        SourceError: a source does not exist or holds no image. Of standard input beside other sources that is
            known too late, when these are being done: it is a warning, after the last image.
    """
    sources = list(map(local_path, sources))
    folders = [source for source in sources if source != STDIN and _holds(Path(source).is_dir)]
    excluded = frozenset(path.resolve() for path in exclude)
    found, nothing_came = False, False
    for source in sources:
        images = _expand(source, excluded, prefix=len(folders) > 1)
        first = next(images, None)
        if first is not None:
            found = True
            yield from chain([first], images)
        elif source == STDIN:
            nothing_came = True
        else:
            raise SourceError(f"no images in {source}")
    if nothing_came and found:
        logger.warning("nothing came from standard input; the images of the other sources are all there are")
    elif nothing_came:
        raise SourceError("no images in standard input")


def check_sources(sources: Sequence[str], exclude: Iterable[Path] = ()) -> None:
    """Checks that every source exists and holds an image, without reading standard input or an address.

    Args:
        sources: what the user named.
        exclude: as for `find_images`.

    Raises:
        SourceError: a source does not exist or holds no image.
    """
    for source in sources:
        if source != STDIN:
            next(find_images([source], exclude))


def local_path(location: str) -> str:
    """Returns the path that a `file:` address of this machine stands for; anything else as it is."""
    match = re.fullmatch(
        r"file:(?://(?:localhost)?(?=/))?(/(?!/).*)", location, flags=re.IGNORECASE | re.DOTALL
    )
    return os.fsdecode(unquote_to_bytes(os.fsencode(match[1]))) if match else location


def is_url(location: str) -> bool:
    """Tells whether a location is an http(s) address."""
    return location.lower().startswith(("http://", "https://"))


def read_image(location: str | Path) -> NDArray[np.uint8]:
    """Reads and decodes an image from a path or an address (http, https, file).

    Returns:
        (H, W, 3) RGB, upright.

    Raises:
        ImageReadError: it cannot be fetched, read or decoded.
    """
    from dcnzoo.image import decode_image

    if not (isinstance(location, str) and is_url(location)):
        return decode_image(local_path(location) if isinstance(location, str) else location)
    try:
        return decode_image(_fetch(location))
    except ImageReadError as error:
        raise ImageReadError(location, error.reason) from error


def _fetch(url: str) -> bytes:
    import requests

    if is_offline():
        raise ImageReadError(url, "DCNZOO_OFFLINE is set")
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT_SECONDS) as response:
            response.raise_for_status()
            content = bytearray()
            for chunk in response.iter_content(CHUNK_BYTES):
                content += chunk
                if len(content) > MAX_DOWNLOAD_BYTES:
                    raise ImageReadError(url, f"larger than {MAX_DOWNLOAD_BYTES >> 20} MiB")
            return bytes(content)
    except requests.RequestException as error:
        raise ImageReadError(url, _request_failure(url, error)) from error


def _request_failure(url: str, error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code} {response.reason}"
    # Some name the address.
    return f"{type(error).__name__}: {error}".replace(url, without_credentials(url))


def _expand(source: str, exclude: frozenset[Path], prefix: bool) -> Iterator[ImageSource]:
    path = Path(source)
    if source == STDIN:
        return _listed(sys.stdin.buffer, Path())
    if is_url(source):
        return iter([ImageSource(source, _name_of_url(source))])
    if _holds(path.is_dir):
        return _walk(path, exclude, PurePath(path.resolve().name if prefix else ""))
    if _holds(path.is_file) and path.suffix.lower() == LIST_SUFFIX:
        return _read_list(path)
    if _holds(path.exists):
        return iter([ImageSource(source, PurePosixPath(path.name))])
    if glob.has_magic(source):
        return _glob(source, exclude)
    raise SourceError(f"no such file or folder: {source}")


def _holds(test: Callable[[], bool]) -> bool:
    """Evaluates a test of a path; one that cannot be looked up, such as a name too long, does not pass."""
    try:
        return test()
    except OSError:
        return False


def _walk(folder: Path, exclude: frozenset[Path], prefix: PurePath) -> Iterator[ImageSource]:
    own = {path.parent for path in exclude}
    drawn: list[str] = []
    for root, folders, files in os.walk(folder, onerror=_raise_unlisted):
        made: Collection[str] = ()
        if RUN_FILE in files and Path(root).resolve() not in own:
            made = pictures_in(Path(root))
        drawn += (str(Path(root, name)) for name in sorted({*folders, *files}.intersection(made)))
        folders[:] = sorted(
            name for name in folders if name not in made and _is_searched(Path(root, name), exclude)
        )
        for name in sorted(files):
            path = Path(root, name)
            if path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".") and name not in made:
                yield ImageSource(str(path), PurePosixPath(prefix / path.relative_to(folder)))
    _warn_of_drawn(*drawn)


@cache  # a source is looked through several times
def _warn_of_drawn(*paths: str) -> None:
    if paths:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        logger.warning(
            "left out, for earlier runs have made them: %s%s; name one as a source to have it searched",
            paths[0],
            more,
        )


def _is_searched(folder: Path, exclude: frozenset[Path]) -> bool:
    return not folder.name.startswith(".") and folder.resolve() not in exclude


def _raise_unlisted(error: OSError) -> None:
    raise SourceError(f"cannot list folder {error.filename}: {error.strerror}") from error


def _glob(pattern: str, exclude: frozenset[Path]) -> Iterator[ImageSource]:
    root = PurePath(*_parts_before(pattern, glob.has_magic))
    searched = Path(*_parts_before(pattern, "**".__eq__)) if "**" in PurePath(pattern).parts else None
    pictures = cache(pictures_in)
    drawn: dict[str, None] = {}
    # Path.glob would refuse an absolute pattern.
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
        path = Path(match)
        wanted = exclude.isdisjoint(path.resolve().parents)
        if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file() or not wanted:
            continue
        # What the pattern names level by level is wanted, whoever has made it.
        below = takewhile(lambda each: each != searched, (path, *path.parents)) if searched else ()
        made = next((each for each in below if each.name in pictures(each.parent)), None)
        if made:
            drawn[str(made)] = None
        else:
            yield ImageSource(match, PurePosixPath(path.relative_to(root)))
    _warn_of_drawn(*drawn)


def _parts_before(pattern: str, ends: Callable[[str], bool]) -> Iterator[str]:
    for part in PurePath(pattern).parts[:-1]:
        if ends(part):
            return
        yield part


def _read_list(path: Path) -> Iterator[ImageSource]:
    with path.open("rb") as file:
        # On standard input there are no comments: it comes from programs, which list files of any name.
        lines = (line for line in file if not line.removeprefix(BOM_UTF8).startswith(b"#"))
        yield from _listed(lines, path.parent)


def _listed(lines: Iterable[bytes], base: Path) -> Iterator[ImageSource]:
    for line in lines:
        location = local_path(os.fsdecode(line.removeprefix(BOM_UTF8).rstrip(b"\r\n")))
        if not location.strip():
            continue
        if "\0" in location:
            raise SourceError("a list of images must be text, one path or address per line")
        if is_url(location):
            yield ImageSource(location, _name_of_url(location))
        else:
            path = Path(location)
            beside_list = not _holds(path.exists) and _holds((base / path).exists)
            found = base / path if beside_list else path
            yield ImageSource(str(found), _name_of_path(path))


def _name_of_path(path: Path) -> PurePosixPath:
    """Names a listed path relative to the working directory, or in full below it if it lies elsewhere."""
    absolute = Path(os.path.normpath(path.absolute()))
    if absolute.is_relative_to(Path.cwd()) and absolute != Path.cwd():
        return PurePosixPath(absolute.relative_to(Path.cwd()))
    below = absolute.relative_to(absolute.anchor)
    return PurePosixPath(below) if below.name else PurePosixPath("image")


def _name_of_url(url: str) -> PurePosixPath:
    """Names an address by the last part of its path, without characters that mean something in a path."""
    try:
        last = unquote(urlsplit(url).path.rstrip("/").rsplit("/", 1)[-1])
    except ValueError:  # half an IPv6 address; reading it will say so
        last = ""
    return PurePosixPath(re.sub(r"[^\w.-]", "_", last, flags=re.ASCII)[-100:].strip(".") or "image")
