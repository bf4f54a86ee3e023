"""`dcnzoo download`."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event

import pytest

from tests.cli.conftest import Program
from tests.http_server import Server, content, in_turn, resumable, serving, stall, then
from tests.waiting import wait_until

DATA = b"weights" * 1000


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"/a.pth": content(DATA), "/b.pth": content(DATA)}) as running:
        yield running


@pytest.fixture
def manifest(tmp_path: Path, server: Server) -> Path:
    """Records `a` and `b` that are right, and `wrong`, whose hash is not the file's, and `absent`."""
    sha256 = hashlib.sha256(DATA).hexdigest()
    files = {"a": sha256, "b": sha256, "wrong": "0" * 64, "absent": sha256}
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
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


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


def test_a_failure_does_not_stop_the_others(dcnzoo: Program, manifest: Path, home: Path) -> None:
    code, out, err = dcnzoo("download", "a", "absent", "wrong", "b", "--manifest", manifest)
    assert code == 1
    assert [Path(line).parent for line in out.splitlines()] == [home / "checkpoints"] * 2
    assert err.count("error: ") == err.count("\n") == 2


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


@pytest.mark.parametrize("arguments", [("--url-base", "ftp://mirror"), ("--url-base", "mirror.example")])
def test_mirror_that_cannot_be(dcnzoo: Program, manifest: Path, arguments: tuple[str, ...]) -> None:
    code, out, err = dcnzoo("download", "a", "--manifest", manifest, *arguments)
    assert (code, out) == (2, "")
    assert "'--url-base': the mirror's address is" in err


def test_mirror(dcnzoo: Program, manifest: Path, server: Server) -> None:
    server.answers["/mirror/absent.pth"] = content(DATA)
    outcome = dcnzoo("download", "absent", "--manifest", manifest, "--url-base", server.url("/mirror"))
    assert (outcome.code, server.requests) == (0, ["/mirror/absent.pth"])


def test_offline(dcnzoo: Program, manifest: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    dcnzoo("download", "a", "--manifest", manifest)
    server.requests.clear()
    monkeypatch.setenv("DCNZOO_OFFLINE", "1")
    code, out, err = dcnzoo("download", "a", "b", "--manifest", manifest)
    assert (code, out.count("\n")) == (1, 1)
    assert err.startswith(f"error: cannot download {server.url('/b.pth')}: DCNZOO_OFFLINE is set; ")
    assert server.requests == []


def start(manifest: Path, *names: str, log: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dcnzoo", "download", *names, "--manifest", str(manifest)]
    with log.open("w") if log else nullcontext(subprocess.PIPE) as stderr:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)


@pytest.mark.parametrize(
    ("kill", "code", "message"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "interrupted\n"), (signal.SIGKILL, -9, "")],
)
def test_killed_download_goes_on_where_it_stopped(
    dcnzoo: Program, manifest: Path, server: Server, home: Path, kill: int, code: int, message: str
) -> None:
    server.answers["/b.pth"] = then(resumable(DATA, cut=3000), stall)
    with start(manifest, "b") as process:
        wait_until(lambda: [path.stat().st_size for path in home.rglob("*.part")] == [3000])
        process.send_signal(kill)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.lstrip()) == (code, "", message)
    assert not [path for path in files_in(home) if path.suffix == ".pth"]
    server.answers["/b.pth"] = resumable(DATA)
    code, out, err = dcnzoo("download", "b", "--manifest", manifest)
    assert (code, err, server.ranges) == (0, "", [None, "bytes=3000-"])
    assert Path(out.rstrip()).read_bytes() == DATA
    assert [path.suffix for path in files_in(home)] == [".pth"]


def test_eight_processes_download_once(manifest: Path, server: Server, tmp_path: Path) -> None:
    go_on = Event()

    def slow(handler: BaseHTTPRequestHandler) -> None:
        content(DATA[:3000], announced=len(DATA), ETag='"v1"')(handler)
        go_on.wait(120)
        handler.wfile.write(DATA[3000:])

    server.answers["/b.pth"] = slow
    logs = [tmp_path / f"{number}.log" for number in range(8)]
    processes = [start(manifest, "b", log=log) for log in logs]
    try:
        wait_until(lambda: sum("waiting for another process" in log.read_text() for log in logs) == 7, 120)
        go_on.set()
        outputs = {process.communicate(timeout=120)[0] for process in processes}
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * 8
    assert Path(outputs.pop().rstrip()).read_bytes() == DATA
    assert not outputs
    assert server.requests == ["/b.pth"]


def test_next_in_line_takes_over_when_the_first_is_killed(
    manifest: Path, server: Server, home: Path, tmp_path: Path
) -> None:
    server.answers["/b.pth"] = in_turn(then(resumable(DATA, cut=3000), stall), resumable(DATA))
    log = tmp_path / "second.log"
    with start(manifest, "b") as first:
        wait_until(lambda: [path.stat().st_size for path in home.rglob("*.part")] == [3000])
        with start(manifest, "b", log=log) as second:
            wait_until(lambda: "waiting for another process" in log.read_text())
            first.kill()
            out, _ = second.communicate(timeout=60)
    assert (second.returncode, Path(out.rstrip()).read_bytes()) == (0, DATA)
    assert server.ranges == [None, "bytes=3000-"]
