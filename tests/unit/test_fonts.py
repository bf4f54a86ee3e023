"""Fonts are found by the characters that they have."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from dcnzoo import fonts
from dcnzoo.fonts import check_font, drawable, font_for
from tests.unit.test_results import detections

CYRILLIC = "собака"
EVERYWHERE = [Path(folder).expanduser() for folder in fonts.FOLDERS]
"""The system's own folders, before a test changes them."""


def forget() -> None:
    for each in (fonts._find, fonts._system_fonts, fonts._warn_of_missing_characters):
        each.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only folder with fonts, and empty."""
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path / "fonts"),))
    forget()
    yield tmp_path / "fonts"
    forget()


@pytest.fixture(scope="session")
def dejavu() -> Path:
    """A font with Cyrillic letters."""
    for folder in EVERYWHERE:
        for root, _, names in os.walk(folder):
            if "DejaVuSans.ttf" in names:
                return Path(root, "DejaVuSans.ttf")
    pytest.skip("this system has no DejaVu Sans")


def family(font: ImageFont.FreeTypeFont) -> str:
    return str(font.getname()[0])


def test_pillows_own_is_enough_for_ascii(folder: Path) -> None:
    own = ImageFont.load_default(20)
    font = font_for("traffic light 0.97 (~100 %)", 20)
    assert (family(font), font.size) == (family(own), 20)
    assert font.getmask("dog").size == own.getmask("dog").size
    assert drawable("traffic light", 10) == "traffic light"


def test_without_a_font_there_are_numbers_and_one_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert [drawable(name, 18) for name in ("dog", CYRILLIC, "猫", "dog")] == [
        "dog",
        "class 18",
        "class 18",
        "dog",
    ]
    assert caplog.text.count("no font was found for the names of some classes") == 1


def test_the_font_of_the_system_that_has_the_characters(folder: Path, dejavu: Path) -> None:
    (folder / "below").mkdir(parents=True)
    shutil.copy(dejavu, folder / "below" / "A.TTF")
    (folder / "broken.ttf").write_bytes(b"no font")
    (folder / "notes.txt").touch()
    assert drawable(CYRILLIC, 18) == CYRILLIC
    assert family(font_for(f"{CYRILLIC} 0.97", 20)) == "DejaVu Sans"
    assert family(font_for("dog 0.97", 20)) != "DejaVu Sans"
    assert drawable("\U0010fffe", 18) == "class 18"


def test_the_font_that_is_named_comes_first(folder: Path, dejavu: Path) -> None:
    assert family(font_for("dog", 20, dejavu)) == "DejaVu Sans"
    assert drawable(CYRILLIC, 18, dejavu) == CYRILLIC
    assert family(font_for("dog", 20)) != "DejaVu Sans"


def test_fonts_with_many_scripts_in_a_usual_weight_are_tried_first(folder: Path) -> None:
    names = [
        "Arial.ttf",
        "NotoSans-Bold.ttf",
        "LastResort.otf",
        "NotoSansCJK-Regular.ttc",
        "Arial-Italic.ttf",
    ]
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    assert [path.name for path in fonts._system_fonts()] == [
        "NotoSansCJK-Regular.ttc",
        "NotoSans-Bold.ttf",
        "Arial.ttf",
        "Arial-Italic.ttf",
    ]


def test_no_font(tmp_path: Path) -> None:
    (tmp_path / "a.ttf").write_bytes(b"no font")
    for name in ("a.ttf", "missing.ttf"):
        with pytest.raises(ValueError, match=rf"cannot read .*{name} as a font .*; give a \.ttf"):
            check_font(tmp_path / name)


def test_labels_of_pictures(folder: Path, dejavu: Path) -> None:
    """A name that no font has is drawn as its number is, one that a font has is not."""
    odd = detections(class_names=(CYRILLIC,) * 3, category_ids=(7, 8, 9), image_size=(480, 640), rles=None)
    numbers = detections(class_names=("class 7", "class 8", "class 9"), image_size=(480, 640), rles=None)
    grey = np.full((480, 640, 3), 128, np.uint8)
    assert odd.plot(grey, score_threshold=0) == numbers.plot(grey, score_threshold=0)
    assert odd.plot(grey, score_threshold=0, font=dejavu) != numbers.plot(grey, score_threshold=0)
    with pytest.raises(ValueError, match="as a font"):
        odd.plot(grey, score_threshold=0, font=folder / "missing.ttf")
