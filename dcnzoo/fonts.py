"""Fonts that have the characters of a text.

Pillow's own font has ASCII alone and draws an empty box for anything else. A text that needs more gets the
first font of the system that has all its characters.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path

from PIL import ImageFont

logger = logging.getLogger(__name__)

Font = ImageFont.FreeTypeFont

FOLDERS = (
    "~/.local/share/fonts",
    "~/.fonts",
    "/usr/local/share/fonts",
    "/usr/share/fonts",
    "~/Library/Fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
)
"""Where Linux and macOS have fonts; searched with what is below."""

SUFFIXES = (".ttf", ".otf", ".ttc")
FAMILIES = ("dejavusans", "notosans")
"""Beginnings of the names of fonts with many scripts, which are tried first."""

STYLES = ("bold", "black", "condensed", "italic", "light", "mono", "oblique", "serif", "thin")
"""Parts of the names of fonts that are tried last."""

MOST_FONTS = 300
"""That are tried; some systems have thousands."""

PROBE_SIZE = 16
NO_CHARACTER = "\U0010ffff"
"""Unicode has none there, so that a font draws what it draws for those it does not have."""


def font_for(text: str, size: int, file: Path | None = None) -> Font:
    """Returns a font for a text.

    Args:
        text: to be drawn.
        size: of the font, pixels.
        file: a font that is taken if it has the characters.

    Returns:
        The first that has every character of the text: the file, Pillow's own, one of the system's. If none
        has, Pillow's own.

    Raises:
        ValueError: the file is no font.
    """
    return _sized(_find(text, file) or _default(), size)


def drawable(name: str, number: int, file: Path | None = None) -> str:
    """Returns a class name if there is a font with its characters, otherwise "class" and its number.

    Args:
        name: of the class.
        number: what else stands for it.
        file: a font, as for `font_for`.

    Raises:
        ValueError: the file is no font.
    """
    if _find(name, file):
        return name
    _warn_of_missing_characters()
    return f"class {number}"


def check_font(file: Path) -> None:
    """Checks that a file is a font.

    Raises:
        ValueError: it is none, or cannot be read.
    """
    _open(file)


@lru_cache(maxsize=1024)
def _find(text: str, file: Path | None) -> Font | None:
    return next((font for font in _candidates(file) if _has(font, text)), None)


def _candidates(file: Path | None) -> Iterator[Font]:
    if file is not None:
        yield _open(file)
    yield _default()
    for path in _system_fonts():
        font = _open_or_none(path)
        if font is not None:
            yield font


def _has(font: Font, text: str) -> bool:
    """Tells whether a font has the characters of a text: those it has not all look the same."""
    missing = _drawn(font, NO_CHARACTER)
    needed = (each for each in text if not each.isspace() and unicodedata.category(each) != "Cf")
    return all(_drawn(font, each) != missing for each in needed)


def _drawn(font: Font, text: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(text)
    return mask.size, bytes(mask)


@cache
def _default() -> Font:
    font = ImageFont.load_default(PROBE_SIZE)
    if not isinstance(font, Font):
        raise RuntimeError("this Pillow is built without FreeType, which draws text")
    return font


@lru_cache(maxsize=64)
def _sized(font: Font, size: int) -> Font:
    return font.font_variant(size=size)


@cache
def _open(file: Path) -> Font:
    try:
        font = ImageFont.truetype(str(file), PROBE_SIZE)
        _drawn(font, NO_CHARACTER)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {file} as a font ({error}); give a .ttf, .otf or .ttc file") from error
    return font


@cache
def _open_or_none(file: Path) -> Font | None:
    try:
        return _open(file)
    except ValueError:
        return None


@cache
def _system_fonts() -> tuple[Path, ...]:
    """Returns the fonts of the system, those first that have many scripts, in an upright, usual weight."""
    found = (
        Path(root, name)
        for folder in FOLDERS
        for root, _, names in os.walk(os.path.expanduser(folder))  # noqa: PTH111
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.lower().startswith("lastresort")
    )
    return tuple(islice(sorted(found, key=_rank), MOST_FONTS))


def _rank(path: Path) -> tuple[bool, bool, str]:
    name = path.stem.lower().replace("-", "").replace("_", "")
    styled = any(style in name.replace("sans", "") for style in STYLES)
    return not name.startswith(FAMILIES), styled, str(path)


@cache
def _warn_of_missing_characters() -> None:
    logger.warning(
        "no font was found for the names of some classes, which are shown by number; install one that has"
        " their characters (Noto Sans CJK has Chinese, Japanese and Korean), or give it with --font"
    )
