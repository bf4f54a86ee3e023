"""Downloads, against a real server that fails in every way it can."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import logging
import os
import random
import re
import struct
import subprocess
import sys
import termios
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event

import pytest

from dcnzoo.download import cache_home, checkpoint_path, fetch, verify_sha256
from dcnzoo.errors import ChecksumError, DcnzooError, DownloadError
from dcnzoo.manifest import Architecture, ClassSet, Preprocessing, Record
from dcnzoo.transfer import Patience
from tests.http_server import Answer, Server, content, serving, status
from tests.waiting import wait_until

DATA = random.Random(0).randbytes(2_500_000)  # three chunks, the last one short
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER = b"<html>Please log in to this network.</html>"
HASTY = Patience(retries=1, timeout=0.3, first_delay=0.01)


def record_of(*urls: str, sha256: str | None = SHA256[:8]) -> Record:
    architecture = Architecture("faster_rcnn", "resnet50")
    return Record("some_model", urls, sha256, architecture, Preprocessing(), ClassSet(("cell",), (1,)))


def without_length(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(DATA)


def silence(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(2)


def stall_before(handler: BaseHTTPRequestHandler) -> None:
    Event().wait(2)
    silence(handler)


def stall_midway(handler: BaseHTTPRequestHandler) -> None:
    content(DATA[:1000], announced=len(DATA))(handler)
    stall_before(handler)


def two_lengths(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "7")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(DATA), DATA))


def only_as_it_is(handler: BaseHTTPRequestHandler) -> None:
    accepted = handler.headers["Accept-Encoding"] == "identity"
    (content(DATA) if accepted else status(406))(handler)


GOOD: dict[str, Answer] = {
    "/plain.pth": content(DATA),
    "/without-length.pth": without_length,
    "/packed.pth": content(gzip.compress(DATA, 1), Content_Encoding="gzip"),
    "/as-it-is.pth": only_as_it_is,
    "/moved.pth": status(302, Location="/plain.pth"),
    "/nonsense-length.pth": content(DATA, announced="many"),
}
BAD: dict[str, tuple[Answer, type[DcnzooError], str]] = {
    "/missing.pth": (status(404), DownloadError, "404 Not Found"),
    "/failing.pth": (status(503), DownloadError, "503 Service Unavailable"),
    "/silent.pth": (silence, DownloadError, "Remote end closed connection"),
    "/truncated.pth": (content(DATA[:9000], announced=len(DATA)), DownloadError, "9000 bytes read"),
    "/two-lengths.pth": (two_lengths, DownloadError, "announced 7 bytes and sent more"),
    "/circular.pth": (status(302, Location="/circular.pth"), DownloadError, "redirects"),
    "/elsewhere.pth": (status(302, Location="ftp://nowhere/x.pth"), DownloadError, "No connection adapters"),
    "/stalled.pth": (stall_before, DownloadError, "timed out"),
    "/stalled-midway.pth": (stall_midway, DownloadError, "timed out"),
    "/login-page.pth": (content(OTHER), ChecksumError, hashlib.sha256(OTHER).hexdigest()),
    "/cut-short.pth": (content(DATA, announced=2_000_000), ChecksumError, SHA256[:8]),
    "/empty.pth": (content(b""), ChecksumError, SHA256[:8]),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCNZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(GOOD | {path: answer for path, (answer, _, _) in BAD.items()}) as running:
        yield running


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("path", GOOD)
def test_gets_the_file_whole_under_its_name(server: Server, home: Path, path: str) -> None:
    name = f"{Path(path).stem}-{SHA256[:8]}.pth"
    got = fetch(record_of(server.url(path)))
    assert got == home / "checkpoints" / name
    assert got.read_bytes() == DATA
    assert files_in(home) == [name]


@pytest.mark.parametrize("path", BAD)
def test_failure_says_why_and_leaves_nothing(server: Server, home: Path, path: str) -> None:
    _, kind, reason = BAD[path]
    with pytest.raises(kind, match=re.escape(reason)) as caught:
        fetch(record_of(server.url(path)), patience=HASTY)
    assert server.url(path) in str(caught.value)
    assert files_in(home) == []


def test_nobody_listening() -> None:
    with serving({}) as gone:
        url = gone.url("/x.pth")
    with pytest.raises(DownloadError, match="Connection refused") as caught:
        fetch(record_of(url), patience=HASTY)
    assert caught.value.url == url


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://a..b/x", "label"),
        (f"http://{'a' * 300}/x", "label"),
        ("http://127.0.0.1:abc/x", "not a valid host or port"),
    ],
)
def test_address_that_cannot_be(url: str, reason: str) -> None:
    with pytest.raises(DownloadError, match=reason):
        fetch(record_of(url))


def test_checksum_error_carries_both_hashes(server: Server) -> None:
    with pytest.raises(ChecksumError) as caught:
        fetch(record_of(server.url("/plain.pth"), sha256="0" * 8))
    assert (caught.value.expected, caught.value.actual) == ("0" * 8, SHA256)
    assert "0" * 8 in str(caught.value)
    assert SHA256 in str(caught.value)


def test_final_name_appears_only_when_complete(home: Path) -> None:
    halfway, go_on = Event(), Event()

    def in_two_parts(handler: BaseHTTPRequestHandler) -> None:
        content(DATA[:2_000_000], announced=len(DATA))(handler)
        halfway.set()
        go_on.wait(10)
        handler.wfile.write(DATA[2_000_000:])

    with serving({"/x.pth": in_two_parts}) as server, ThreadPoolExecutor() as pool:
        result = pool.submit(fetch, record_of(server.url("/x.pth")))
        assert halfway.wait(10)
        wait_until(lambda: bool(files_in(home)))
        names = files_in(home)
        go_on.set()
        assert result.result(10).read_bytes() == DATA
    assert all(name.endswith((".part", ".part.json")) for name in names)


def test_simultaneous_downloads_do_not_disturb_each_other(server: Server, home: Path) -> None:
    record = record_of(server.url("/plain.pth"))
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(fetch, [record] * 4))
    assert len(paths) == 1
    assert paths.pop().read_bytes() == DATA
    assert len(files_in(home)) == 1


def test_addresses_are_tried_in_order(server: Server, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    urls = [server.url(path) for path in ("/missing.pth", "/login-page.pth", "/plain.pth", "/failing.pth")]
    before = len(server.requests)
    assert fetch(record_of(*urls)).read_bytes() == DATA
    assert server.requests[before:] == ["/missing.pth", "/login-page.pth", "/plain.pth"]
    assert len(files_in(home)) == 1
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING] * 2
    assert "404" in caplog.text


def test_last_address_gives_the_reason(server: Server) -> None:
    with pytest.raises(DownloadError, match="503"):
        fetch(record_of(server.url("/missing.pth"), server.url("/failing.pth")), patience=HASTY)


@pytest.mark.parametrize("sha256", [SHA256[:8], SHA256, None])
def test_cached_file_is_not_fetched_again(server: Server, sha256: str | None) -> None:
    record = record_of(server.url("/plain.pth"), sha256=sha256)
    first = fetch(record)
    before = len(server.requests)
    assert fetch(record) == first
    assert len(server.requests) == before


def test_damaged_cached_file_is_replaced(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    record = record_of(server.url("/plain.pth"))
    path = fetch(record)
    path.write_bytes(DATA[:-1] + b"!")
    assert fetch(record).read_bytes() == DATA
    assert "it is damaged" in caplog.text


def test_damaged_cached_file_stays_when_it_cannot_be_replaced(server: Server) -> None:
    record = record_of(server.url("/missing.pth"))
    path = checkpoint_path(record)
    path.parent.mkdir(parents=True)
    path.write_bytes(OTHER)
    with pytest.raises(DownloadError, match="404"):
        fetch(record)
    assert path.read_bytes() == OTHER


def test_cache_dir_argument(server: Server, tmp_path: Path, home: Path) -> None:
    path = fetch(record_of(server.url("/plain.pth")), cache_dir=tmp_path / "own")
    assert path.parent == tmp_path / "own" / "checkpoints"
    assert not home.exists()


def test_home_that_is_a_file(server: Server, home: Path) -> None:
    home.write_text("in the way")
    with pytest.raises(DownloadError, match=r"cannot write to .*checkpoints \(.*\); set DCNZOO_HOME"):
        fetch(record_of(server.url("/plain.pth")))
    assert home.read_text() == "in the way"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"/a/model-{SHA256[:8]}.pth", f"model-{SHA256[:8]}.pth"),
        ("/a/model.pth", f"model-{SHA256[:8]}.pth"),
        ("/a/model.pth?token=1#top", f"model-{SHA256[:8]}.pth"),
        ("/a/..%2f..%2fmodel.pth", f"model-{SHA256[:8]}.pth"),
        ("/a/%2e%2e%5c%2e%2e%5cmodel.pth", f"_.._model-{SHA256[:8]}.pth"),
        ("/a/.bashrc", f"bashrc-{SHA256[:8]}"),
        ("/a/%00%0a%20b.pth", f"___b-{SHA256[:8]}.pth"),
        ("/a/..", f"checkpoint-{SHA256[:8]}"),
        ("", f"checkpoint-{SHA256[:8]}"),
        (f"/{'x' * 500}.pth", f"{'x' * 96}-{SHA256[:8]}.pth"),
    ],
)
def test_file_name_comes_from_the_address_and_is_harmless(home: Path, path: str, name: str) -> None:
    assert checkpoint_path(record_of(f"https://host{path}")) == home / "checkpoints" / name


def test_equal_file_names_do_not_collide() -> None:
    urls = "https://host/a/best.pth", "https://host/b/best.pth"
    by_hash = {checkpoint_path(record_of(urls[0], sha256=digits * 8)) for digits in "ab"}
    by_url = {checkpoint_path(record_of(url, sha256=None)) for url in urls}
    assert len(by_hash | by_url) == 4


@pytest.mark.parametrize("sha256", [SHA256[:8], None])
def test_local_file_is_used_in_place(tmp_path: Path, home: Path, sha256: str | None) -> None:
    own = tmp_path / "my models" / "été.pth"
    own.parent.mkdir()
    own.write_bytes(DATA)
    record = record_of("https://127.0.0.1:1/never-asked.pth", own.as_uri(), sha256=sha256)
    assert checkpoint_path(record) == own
    assert fetch(record) == own
    assert not home.exists()


def test_local_file_with_another_hash_is_refused_and_kept(tmp_path: Path) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(OTHER)
    with pytest.raises(ChecksumError, match=re.escape(str(own))):
        fetch(record_of(own.as_uri()))
    assert own.read_bytes() == OTHER


def test_local_file_with_another_hash_gives_way_to_the_web(server: Server, tmp_path: Path) -> None:
    own = tmp_path / "own.pth"
    own.write_bytes(OTHER)
    path = fetch(record_of(own.as_uri(), server.url("/plain.pth")))
    assert path.read_bytes() == DATA
    assert own.read_bytes() == OTHER


def test_missing_local_file(tmp_path: Path) -> None:
    record = record_of((tmp_path / "absent.pth").as_uri(), sha256=None)
    assert checkpoint_path(record) == tmp_path / "absent.pth"
    with pytest.raises(DownloadError, match="No such file"):
        fetch(record)


@pytest.mark.parametrize("prefix", [SHA256[:8], SHA256[:8].upper(), SHA256])
def test_verify_accepts(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    verify_sha256(path, prefix)


def test_verify_refuses(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    with pytest.raises(ChecksumError) as caught:
        verify_sha256(path, "ba7816be")
    # FIPS 180-4's own example: SHA-256("abc")
    assert caught.value.actual == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_cache_home_by_default_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DCNZOO_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_home().name == "dcnzoo"
    assert tmp_path in cache_home().parents


def test_cache_home_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCNZOO_HOME", "cache")
    assert cache_home() == Path.cwd() / "cache"


def test_no_progress_bar_without_a_terminal(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    fetch(record_of(server.url("/plain.pth")))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar_on_a_terminal(server: Server, progress: bool) -> None:
    code = f"""
        from dcnzoo.download import fetch
        from tests.unit.test_download import record_of

        fetch(record_of({server.url("/plain.pth")!r}), progress={progress})
    """
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=60,
        check=True,
    )
    os.write(theirs, b"end\n")
    with os.fdopen(ours, "rb") as screen:
        shown = b"".join(iter(screen.readline, b"end\r\n"))
    os.close(theirs)
    assert done.stdout == b""
    assert (b"100%" in shown, b"2.38M" in shown) == (progress, progress)
