"""`dcnzoo download`."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event

import pytest

from tests.cli.conftest import Program
from tests.http_server import Server, content, serving

DATA = b"weights" * 1000
STARTED = Event()


def endless(handler: BaseHTTPRequestHandler) -> None:
    content(DATA, announced=10**9)(handler)
    STARTED.set()
    Event().wait(60)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"/a.pth": content(DATA), "/b.pth": content(DATA), "/endless.pth": endless}) as running:
        yield running


@pytest.fixture
def manifest(tmp_path: Path, server: Server) -> Path:
    """Records `a` and `b` that are right, `wrong`, whose hash is not the file's, `absent` and `endless`."""
    sha256 = hashlib.sha256(DATA).hexdigest()
    files = {"a": sha256, "b": sha256, "wrong": "0" * 64, "absent": sha256, "endless": sha256}
    path = tmp_path / "own.yaml"
    path.write_text(
        "checkpoints:\n"
        + "".join(
            f"  - name: {name}\n"
            f"    urls: [{server.url('/a.pth' if name == 'wrong' else f'/{name}.pth')}]\n"
            f'    sha256: "{sha256}"\n'
            "    architecture: {detector: faster_rcnn, backbone: resnet50}\n"
            "    classes: coco\n"
            for name, sha256 in files.items()
        )
    )
    return path


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_prints_the_paths(dcnzoo: Program, manifest: Path, home: Path) -> None:
    code, out, err = dcnzoo("download", "a", "b", "--manifest", manifest)
    paths = [Path(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [path.parent for path in paths] == [home / "checkpoints"] * 2
    assert [path.read_bytes() for path in paths] == [DATA] * 2
    assert "yes" in dcnzoo("list", "a", "--manifest", manifest).out


def test_local_file_is_named_where_it_lies(dcnzoo: Program, own_manifest: Path, home: Path) -> None:
    outcome = dcnzoo("download", "cells", "--manifest", own_manifest)
    assert outcome == (0, f"{own_manifest.with_name('cells.pth')}\n", "")
    assert not home.exists()


def test_wrong_file_tells_both_hashes_and_is_not_kept(dcnzoo: Program, manifest: Path, home: Path) -> None:
    code, out, err = dcnzoo("download", "wrong", "--manifest", manifest)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert hashlib.sha256(DATA).hexdigest() in err
    assert "0" * 64 in err
    assert files_in(home) == []


def test_absent_file(dcnzoo: Program, manifest: Path, server: Server, home: Path) -> None:
    code, out, err = dcnzoo("download", "absent", "--manifest", manifest)
    assert (code, out) == (1, "")
    assert err == f"error: cannot download {server.url('/absent.pth')}: the server answered 404 Not Found\n"
    assert files_in(home) == []


def test_misspelt_name_stops_before_anything_is_fetched(
    dcnzoo: Program, manifest: Path, server: Server
) -> None:
    code, _, err = dcnzoo("download", "a", "abzent", "--manifest", manifest)
    assert code == 1
    assert "did you mean absent?" in err
    assert server.requests == []


@pytest.mark.parametrize("arguments", [[], ["a", "--all"]])
def test_names_or_all(dcnzoo: Program, manifest: Path, arguments: list[str]) -> None:
    code, out, err = dcnzoo("download", *arguments, "--manifest", manifest)
    assert (code, out) == (2, "")
    assert "or give --all" in err


def test_interruption_leaves_nothing(manifest: Path, home: Path) -> None:
    STARTED.clear()
    command = [sys.executable, "-m", "dcnzoo", "download", "endless", "--manifest", str(manifest)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert STARTED.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "interrupted")
    assert files_in(home) == []
