"""Offline mode, mirrors, proxies and certificates."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dcnzoo.download import checkpoint_path, fetch, is_offline, mirrored
from dcnzoo.errors import ChecksumError, DcnzooError, DownloadError, ImageReadError
from dcnzoo.manifest import load_manifest
from dcnzoo.sources import read_image
from dcnzoo.transfer import Patience
from tests.http_server import Server, content, in_turn, resumable, serving, status
from tests.unit.test_download import DATA, OTHER, files_in, record_of

if TYPE_CHECKING:
    import trustme

HASTY = Patience(retries=3, timeout=5, first_delay=0.01)
SETTINGS = (
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
)
NAMES = sorted(name for name, record in load_manifest().records.items() if not record.built_in)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCNZOO_HOME", str(tmp_path / "home"))
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "home"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"/a/x.pth": content(DATA), "/mirror/a/x.pth": content(DATA)}) as running:
        yield running


class TestOffline:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DCNZOO_OFFLINE", "1")

    def test_says_what_is_missing_and_where_to_put_it(self, server: Server) -> None:
        record = record_of(server.url("/a/x.pth"))
        with pytest.raises(DownloadError) as caught:
            fetch(record)
        assert server.url("/a/x.pth") in str(caught.value)
        assert "DCNZOO_OFFLINE is set" in str(caught.value)
        assert str(checkpoint_path(record)) in str(caught.value)
        assert server.requests == []

    def test_file_put_there_by_hand_is_used(self, server: Server) -> None:
        record = record_of(server.url("/a/x.pth"))
        path = checkpoint_path(record)
        path.parent.mkdir(parents=True)
        path.write_bytes(DATA)
        assert fetch(record) == path
        assert server.requests == []

    def test_damaged_file_is_refused(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        record = record_of(server.url("/a/x.pth"))
        path = checkpoint_path(record)
        path.parent.mkdir(parents=True)
        path.write_bytes(OTHER)
        with pytest.raises(DownloadError, match="DCNZOO_OFFLINE"):
            fetch(record)
        assert hashlib.sha256(OTHER).hexdigest() in caplog.text
        assert server.requests == []

    def test_local_file_is_used(self, tmp_path: Path, server: Server) -> None:
        own = tmp_path / "own.pth"
        own.write_bytes(DATA)
        assert fetch(record_of(server.url("/a/x.pth"), own.as_uri())) == own

    def test_images_are_not_fetched_either(self, server: Server) -> None:
        with pytest.raises(ImageReadError, match="DCNZOO_OFFLINE is set"):
            read_image(server.url("/a/x.png"))
        assert server.requests == []


@pytest.mark.parametrize(
    ("value", "offline"),
    [("1", True), ("true", True), ("YES", True), ("on", True), ("0", False), ("", False), ("no", False)],
)
def test_values_of_offline(value: str, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCNZOO_OFFLINE", value)
    assert is_offline() is offline


class TestMirror:
    URL = "https://127.0.0.1:1/a/x.pth"

    @pytest.mark.parametrize("end", ["", "/"])
    def test_of_the_environment(self, server: Server, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DCNZOO_MIRROR", server.url("/mirror") + end)
        record = record_of(self.URL)
        assert fetch(record).read_bytes() == DATA
        assert server.requests == ["/mirror/a/x.pth"]
        assert fetch(record) == checkpoint_path(record)

    def test_argument_comes_first(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DCNZOO_MIRROR", "http://127.0.0.1:1")
        assert fetch(record_of(self.URL), url_base=server.url("")).read_bytes() == DATA
        assert server.requests == ["/a/x.pth"]

    def test_with_the_wrong_file_does_no_harm(self, server: Server, home: Path) -> None:
        server.answers["/a/x.pth"] = content(OTHER)
        with pytest.raises(ChecksumError, match=hashlib.sha256(OTHER).hexdigest()):
            fetch(record_of(self.URL), url_base=server.url(""))
        assert files_in(home) == []

    def test_without_the_file(self, server: Server) -> None:
        with pytest.raises(DownloadError, match=r"/elsewhere/a/x\.pth: the server answered 404"):
            fetch(record_of(self.URL), url_base=server.url("/elsewhere"))

    def test_is_not_trusted_with_what_cannot_be_verified(
        self, server: Server, caplog: pytest.LogCaptureFixture
    ) -> None:
        record = record_of(server.url("/a/x.pth"), sha256=None)
        assert fetch(record, url_base="http://127.0.0.1:1").read_bytes() == DATA
        assert "no mirror" in caplog.text

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("https://host/a/b.pth", "http://mirror/x/a/b.pth"),
            ("https://user@host:80/a//b.pth?key=1#top", "http://mirror/x/a//b.pth?key=1"),
            ("https://host", "http://mirror/x"),
        ],
    )
    def test_address(self, url: str, expected: str) -> None:
        assert mirrored(url, "http://mirror/x/") == expected

    @pytest.mark.parametrize("base", ["mirror", "ftp://mirror", "http://", "http://[", "http://m/?a=b"])
    def test_that_cannot_be(self, base: str) -> None:
        with pytest.raises(DcnzooError, match="the mirror's address"):
            fetch(record_of(self.URL), url_base=base)


@pytest.mark.parametrize("name", NAMES)
def test_every_published_checkpoint_comes_through_a_bad_line(home: Path, name: str) -> None:
    # The published files are not at hand: others take their places, with hashes of their own.
    data = name.encode() * 10_000
    record = replace(load_manifest().records[name], sha256=hashlib.sha256(data).hexdigest())
    path = record.urls[0].partition("//")[2].partition("/")[2]
    answers = in_turn(status(503), resumable(data, cut=99_999), resumable(data))
    with serving({f"/{path}": answers}) as server:
        got = fetch(record, url_base=server.url(""), patience=HASTY)
        assert server.ranges == [None, None, "bytes=99999-"]
    assert got.read_bytes() == data
    assert files_in(home) == [got.name]


def test_proxy_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://models.invalid/a/x.pth"
    monkeypatch.setenv("HTTP_PROXY", server.url(""))
    server.answers[url] = content(DATA)
    assert fetch(record_of(url)).read_bytes() == DATA
    assert server.requests == [url]


class TestCertificates:
    @pytest.fixture
    def authority(self) -> trustme.CA:
        import trustme  # here, for the tests that need a GPU run where it may not be installed

        return trustme.CA()

    @pytest.fixture
    def secure(self, server: Server, authority: trustme.CA) -> Server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        return server

    @pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
    def test_bundle_of_the_environment(
        self,
        secure: Server,
        authority: trustme.CA,
        tmp_path: Path,
        variable: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv(variable, str(tmp_path / "ca.pem"))
        url = secure.url("/a/x.pth").replace("http", "https")
        assert fetch(record_of(url)).read_bytes() == DATA

    def test_unknown_authority_is_refused_at_once(self, secure: Server, home: Path) -> None:
        url = secure.url("/a/x.pth").replace("http", "https")
        with pytest.raises(DownloadError, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(record_of(url), patience=Patience(retries=9, first_delay=60))
        assert files_in(home) == []
