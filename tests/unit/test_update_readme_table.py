"""The README's table of checkpoints is generated, and an old one is noticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "update_readme_table.py"
MARKERS = "<!-- checkpoints:begin -->", "<!-- checkpoints:end -->"


def update(readme: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--readme", str(readme), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(f"# Title\n\n{MARKERS[0]}\n{MARKERS[1]}\n\nText – after.\n", encoding="utf-8")
    return path


def test_writes_the_table_between_the_markers(readme: Path) -> None:
    assert update(readme).returncode == 0
    lines = readme.read_text(encoding="utf-8").splitlines()
    table = lines[lines.index(MARKERS[0]) + 1 : lines.index(MARKERS[1])]
    assert (lines[:2], lines[-2:]) == (["# Title", ""], ["", "Text – after."])
    assert len(table) == 2 + 18
    assert len({line.count("|") for line in table}) == 1
    (group4,) = (line for line in table if "group4" in line)
    assert group4.startswith("| [`faster_rcnn_r50_fpn_mdconv_c3-c5_group4_1x_coco`](https://")
    assert group4.endswith("-01262257.pth) | resnet50 | mdconv, 4 groups | roi_align | 41.5 | – | 17.4 |")


def test_check_notices_an_old_table(readme: Path) -> None:
    before = readme.read_text(encoding="utf-8")
    done = update(readme, "--check")
    assert (done.returncode, readme.read_text(encoding="utf-8")) == (1, before)
    assert "out of date" in done.stderr


def test_check_accepts_the_current_table(readme: Path) -> None:
    update(readme)
    assert update(readme, "--check").returncode == 0


@pytest.mark.parametrize("text", ["", MARKERS[0], "".join(reversed(MARKERS)), "".join(MARKERS * 2)])
def test_missing_markers(readme: Path, text: str) -> None:
    readme.write_text(text)
    done = update(readme)
    assert (done.returncode, readme.read_text()) == (1, text)
    assert "expected one <!-- checkpoints:begin -->" in done.stderr
