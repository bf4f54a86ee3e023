"""`dcnzoo cache`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcnzoo.download import cached_path, locked
from dcnzoo.manifest import load_manifest
from tests.cli.conftest import Program

DATA = b"weights" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
NAMES = ("cells", "fish", "half", "open")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Records with a hash, but for `open`."""
    path = tmp_path / "own.yaml"
    lines = [
        f"  - name: {name}\n"
        f"    urls: [https://127.0.0.1:1/{name}.pth]\n"
        f"    architecture: {{detector: faster_rcnn, backbone: resnet50}}\n"
        f"    classes: coco\n" + (f'    sha256: "{SHA256}"\n' if name != "open" else "")
        for name in NAMES
    ]
    path.write_text("checkpoints:\n" + "".join(lines))
    return path


@pytest.fixture
def paths(manifest: Path, home: Path) -> dict[str, Path]:
    """A cache with a good, a damaged, an unfinished and an unverifiable file, and one that nobody knows."""
    (home / "checkpoints").mkdir(parents=True)
    records = load_manifest(manifest).records
    paths = {name: cached_path(records[name]) for name in NAMES}
    for name, content in {"cells": DATA, "fish": DATA[:-1], "open": b"x" * 2048}.items():
        paths[name].write_bytes(content)
    half = paths["half"]
    paths["half"] = half.with_name(f"{half.name}.part")
    paths["half"].write_bytes(DATA[:5000])
    note = {"url": "https://127.0.0.1:1/half.pth", "validator": '"v1"', "total": 7000}
    half.with_name(f"{half.name}.part.json").write_text(json.dumps(note))
    paths["mine"] = home / "checkpoints" / "epoch_12.pth"
    paths["mine"].write_bytes(b"months of training")
    return paths


def words_of(text: str) -> dict[str, list[str]]:
    """Words of each line by the first one."""
    lines = [line.split() for line in text.splitlines()]
    return {words[0]: words[1:] for words in lines}


def test_list(dcnzoo: Program, manifest: Path, paths: dict[str, Path], home: Path) -> None:
    code, out, err = dcnzoo("cache", "list", "--manifest", manifest)
    assert (code, err) == (0, "")
    assert words_of(out) == {
        "name": ["size", "state", "file"],
        "cells": ["6.8", "KiB", "complete", paths["cells"].name],
        "fish": ["6.8", "KiB", "complete", paths["fish"].name],
        "half": ["4.9", "KiB", "part", "of", "6.8", "KiB", paths["half"].name],
        "open": ["2.0", "KiB", "complete", paths["open"].name],
        "-": ["18", "bytes", "unknown", "epoch_12.pth"],
        "5": ["files,", "20.6", "KiB", "in", str(home / "checkpoints")],
    }


def test_list_for_programs(dcnzoo: Program, manifest: Path, paths: dict[str, Path]) -> None:
    code, out, _ = dcnzoo("cache", "list", "half", "--json", "--manifest", manifest)
    assert code == 0
    assert json.loads(out) == [
        {"names": ["half"], "path": str(paths["half"]), "bytes": 5000, "total_bytes": 7000, "state": "part"}
    ]


@pytest.mark.parametrize("command", ["list", "verify"])
def test_empty_cache(dcnzoo: Program, command: str, home: Path) -> None:
    outcome = dcnzoo("cache", command)
    assert outcome == (0, f"0 files, 0 bytes in {home / 'checkpoints'}\n", "")
    assert not home.exists()


def test_verify_finds_the_damaged_file(dcnzoo: Program, manifest: Path, paths: dict[str, Path]) -> None:
    code, out, err = dcnzoo("cache", "verify", "--manifest", manifest)
    assert code == 1
    states = {name: words[2] for name, words in words_of(out).items() if name in (*NAMES, "-")}
    assert states == {"cells": "verified", "fish": "damaged", "half": "part", "open": "no", "-": "unknown"}
    assert err.count("\n") == 1
    assert err.startswith(f"error: {paths['fish']}: SHA-256 is {hashlib.sha256(DATA[:-1]).hexdigest()}")
    assert SHA256 in err
    assert "`dcnzoo download fish` replaces it" in err
    assert paths["fish"].exists()


@pytest.mark.parametrize(("name", "code"), [("cells", 0), ("open", 0), ("half", 0), ("fish", 1)])
def test_verify_one(dcnzoo: Program, manifest: Path, paths: dict[str, Path], name: str, code: int) -> None:
    outcome = dcnzoo("cache", "verify", name, "--manifest", manifest)
    assert outcome.code == code
    assert "1 file," in outcome.out


def test_verify_one_that_is_not_there(dcnzoo: Program, manifest: Path) -> None:
    code, _, err = dcnzoo("cache", "verify", "cells", "--manifest", manifest)
    assert (code, err) == (1, "error: cells is not in the cache\n")


@pytest.mark.parametrize("command", [["list"], ["verify"], ["clear", "--yes"]])
def test_misspelt_name(
    dcnzoo: Program, manifest: Path, paths: dict[str, Path], command: list[str], home: Path
) -> None:
    code, out, err = dcnzoo("cache", *command, "cells", "fisch", "--manifest", manifest)
    assert (code, out) == (1, "")
    assert "did you mean fish?" in err
    assert all(path.exists() for path in paths.values())


def test_clear_removes_what_is_known(dcnzoo: Program, manifest: Path, paths: dict[str, Path]) -> None:
    mine = paths.pop("mine")
    code, out, err = dcnzoo("cache", "clear", "--yes", "--manifest", manifest)
    assert (code, err) == (0, "left alone, since no manifest knows them: 1 file\n")
    assert out == "".join(f"removed {path}\n" for path in paths.values()) + "freed 20.6 KiB\n"
    assert list(mine.parent.iterdir()) == [mine]
    assert dcnzoo("cache", "clear", "--yes", "--manifest", manifest).out == "nothing to remove\n"


def test_clear_one(dcnzoo: Program, manifest: Path, paths: dict[str, Path]) -> None:
    code, out, _ = dcnzoo("cache", "clear", "half", "-y", "--manifest", manifest)
    assert (code, out) == (0, f"removed {paths['half']}\nfreed 4.9 KiB\n")
    assert {path.name for path in paths["mine"].parent.iterdir()} == {
        paths[name].name for name in ("cells", "fish", "open", "mine")
    }


def test_clear_does_not_ask_nobody(dcnzoo: Program, manifest: Path, paths: dict[str, Path]) -> None:
    code, out, err = dcnzoo("cache", "clear", "--manifest", manifest)
    assert (code, out) == (2, "")
    assert "give --yes" in err
    assert all(path.exists() for path in paths.values())


@pytest.mark.parametrize(
    ("answer", "code", "left"), [(b"n\n", 1, True), (b"\n", 1, True), (b"y\n", 0, False)]
)
def test_clear_asks_on_a_terminal(
    manifest: Path, paths: dict[str, Path], answer: bytes, code: int, left: bool
) -> None:
    ours, theirs = os.openpty()
    os.write(ours, answer)
    command = [sys.executable, "-m", "dcnzoo", "cache", "clear", "cells", "--manifest", str(manifest)]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=60)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == code, done.stderr
    assert f"{paths['cells']} (6.8 KiB)" in done.stderr
    assert "Remove 1 file? [y/N]" in done.stderr
    assert paths["cells"].exists() == left


def test_clear_leaves_a_download_alone(dcnzoo: Program, manifest: Path, paths: dict[str, Path]) -> None:
    target = paths["half"].with_suffix("")
    with locked(target):
        code, out, err = dcnzoo("cache", "clear", "half", "cells", "--yes", "--manifest", manifest)
    assert (code, out) == (1, f"removed {paths['cells']}\nfreed 6.8 KiB\n")
    assert err == f"error: {paths['half']} was not removed: another process is downloading it\n"
    assert paths["half"].exists()


def test_help(dcnzoo: Program) -> None:
    code, out, _ = dcnzoo("cache", "--help")
    assert code == 0
    assert [line.split()[0] for line in out.partition("Commands:\n")[2].splitlines()] == [
        *("clear", "list", "verify"),
    ]
