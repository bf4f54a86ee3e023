"""Downloads that are interrupted, resumed and retried, against a real server."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcnzoo.download import checkpoint_path, fetch
from dcnzoo.errors import ChecksumError, DcnzooError, DownloadError
from dcnzoo.manifest import Record
from dcnzoo.transfer import Patience, readable_size
from tests.http_server import (
    Answer,
    Server,
    content,
    drip,
    in_turn,
    piece,
    reset,
    resumable,
    serving,
    stall,
    status,
    then,
)
from tests.unit.test_download import DATA, SHA256, files_in, record_of

CUT = 1_000_000
ONCE = Patience(retries=0, timeout=0.3)
HASTY = Patience(retries=3, timeout=0.3, first_delay=0.01)
OTHER = bytes(reversed(DATA))
GOOD = resumable(DATA)
DROPPED = resumable(DATA, cut=CUT)
FIRST_HALF = content(DATA[:CUT], announced=len(DATA), ETag='"v1"')


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCNZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "home"


def part_of(record: Record) -> Path:
    path = checkpoint_path(record)
    return path.with_name(f"{path.name}.part")


def note_of(record: Record) -> Path:
    path = checkpoint_path(record)
    return path.with_name(f"{path.name}.part.json")


def interrupted(server: Server, first: Answer = DROPPED) -> Record:
    """A record of which an earlier run has fetched the first part."""
    record = record_of(server.url("/x.pth"))
    server.answers["/x.pth"] = first
    with pytest.raises(DownloadError):
        fetch(record, patience=ONCE)
    server.requests.clear()
    server.ranges.clear()
    return record


@pytest.mark.parametrize(
    "accident", [DROPPED, then(DROPPED, reset), then(DROPPED, stall)], ids=["end", "reset", "stall"]
)
def test_goes_on_where_it_was_interrupted(home: Path, accident: Answer) -> None:
    with serving({"/x.pth": in_turn(accident, GOOD)}) as server:
        path = fetch(record_of(server.url("/x.pth")), patience=HASTY)
        assert server.ranges[0] is None
        # A reset may cost some of what the server has sent.
        assert 0 < int(str(server.ranges[1]).removeprefix("bytes=").removesuffix("-")) <= CUT
        assert len(server.ranges) == 2
    assert path.read_bytes() == DATA
    assert files_in(home) == [path.name]


def test_drip_counts_as_a_stall(caplog: pytest.LogCaptureFixture) -> None:
    with serving({"/x.pth": in_turn(drip(DATA), GOOD)}) as server:
        assert fetch(record_of(server.url("/x.pth")), patience=HASTY).read_bytes() == DATA
    assert "stalled: " in caplog.text


def test_later_run_goes_on_where_it_was_interrupted(home: Path) -> None:
    with serving({}) as server:
        record = interrupted(server)
        assert part_of(record).read_bytes() == DATA[:CUT]
        assert json.loads(note_of(record).read_bytes())["total"] == len(DATA)
        assert not checkpoint_path(record).exists()
        server.answers["/x.pth"] = GOOD
        assert fetch(record).read_bytes() == DATA
        assert server.ranges == [f"bytes={CUT}-"]
    assert files_in(home) == [checkpoint_path(record).name]


@pytest.mark.parametrize("headers", [{"ETag": '"v1"'}, {"Last_Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}])
def test_asks_only_for_a_piece_of_the_same_file(headers: dict[str, str]) -> None:
    with serving({}) as server:
        record = interrupted(server, resumable(DATA, cut=CUT, **headers))
        server.answers["/x.pth"] = resumable(DATA, **headers)
        fetch(record)
        assert server.ranges == [f"bytes={CUT}-"]


@pytest.mark.parametrize(
    ("first", "second"),
    {
        "changed": (resumable(OTHER, cut=CUT), GOOD),
        "ranges are ignored": (FIRST_HALF, content(DATA, ETag='"v1"')),
        "same file gone shorter": (
            resumable(DATA * 2, cut=len(DATA) + 9, ETag='"v1"'),
            resumable(DATA, ETag='"v1"'),
        ),
        "another length": (FIRST_HALF, in_turn(piece(DATA, CUT, total=7), GOOD)),
        "another version": (FIRST_HALF, in_turn(piece(OTHER, CUT, ETag='"v2"'), GOOD)),
        "from another place": (FIRST_HALF, in_turn(piece(DATA, CUT - 1), GOOD)),
        "no range stated": (FIRST_HALF, in_turn(status(206), GOOD)),
    }.values(),
)
def test_starts_over_when_the_server_has_another_file(first: Answer, second: Answer) -> None:
    with serving({}) as server:
        record = interrupted(server, first)
        server.answers["/x.pth"] = second
        assert fetch(record, patience=HASTY).read_bytes() == DATA
        assert server.ranges[0] is not None


@pytest.mark.parametrize(
    "liar",
    [
        piece(OTHER, CUT, ETag='"v2"'),
        piece(DATA, CUT - 1, ETag='"v1"'),
        piece(DATA * 2, CUT, ETag='"v1"'),
        piece(DATA, CUT, ETag='"v1"', Content_Encoding="identity"),
    ],
    ids=["another version", "another place", "another length", "encoded"],
)
def test_piece_that_does_not_fit_is_noticed_without_a_hash(liar: Answer) -> None:
    with serving({"/x.pth": in_turn(FIRST_HALF, liar, GOOD)}) as server:
        assert fetch(record_of(server.url("/x.pth"), sha256=None), patience=HASTY).read_bytes() == DATA
        assert server.ranges == [None, f"bytes={CUT}-", None]


@pytest.mark.parametrize(
    "headers",
    [
        {"X": "y"},
        {"ETag": 'W/"v1"'},
        {"ETag": '"v1\t2"'},
        {"ETag": '"v1"', "Content_Encoding": "gzip"},
        {"Last_Modified": "hier à midi"},
    ],
)
def test_leaves_no_part_that_no_request_could_complete(home: Path, headers: dict[str, str]) -> None:
    with serving({}) as server:
        record = interrupted(server, content(DATA[:CUT], announced=len(DATA), **headers))
        assert files_in(home) == []
        server.answers["/x.pth"] = GOOD
        assert fetch(record).read_bytes() == DATA
        assert server.ranges == [None]


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    {
        "empty": (".+", ""),
        "torn": (r"(.{20}).+", r"\1"),
        "list": (".+", "[1]"),
        "null": (".+", "null"),
        "not UTF-8": (".+", "\xff"),
        "field missing": ("validator", "x"),
        "other address": ("/x.pth", "/y.pth"),
        "no validator": ('"validator": [^\n]*,', '"validator": null,'),
        "several lines": ('"validator": [^\n]*,', '"validator": "a\\\\nHost: b",'),
        "odd validator": ('"validator": [^\n]*,', '"validator": [1],'),
        "odd length": (str(len(DATA)), '"x"'),
    }.values(),
)
def test_starts_over_when_the_note_is_spoilt(pattern: str, replacement: str) -> None:
    with serving({}) as server:
        record = interrupted(server)
        note = note_of(record)
        spoilt = re.sub(pattern, replacement, note.read_text(), count=1, flags=re.DOTALL)
        assert spoilt != note.read_text()
        note.write_text(spoilt, "latin-1")
        server.answers["/x.pth"] = GOOD
        assert fetch(record).read_bytes() == DATA
        assert server.ranges == [None]


def test_complete_part_needs_no_request() -> None:
    with serving({}) as server:
        record = interrupted(server)
        part_of(record).write_bytes(DATA)
        assert fetch(record).read_bytes() == DATA
        assert server.requests == []


@pytest.mark.parametrize("spoilt", [OTHER[:CUT], OTHER], ids=["begun", "complete"])
def test_pieces_that_do_not_fit_are_fetched_again(
    home: Path, spoilt: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    # As after a power cut, or from a server that gives two files the same ETag.
    with serving({}) as server:
        record = interrupted(server)
        part_of(record).write_bytes(spoilt)
        server.answers["/x.pth"] = GOOD
        assert fetch(record).read_bytes() == DATA
        assert server.ranges[-1] is None
    assert "starting over" in caplog.text
    assert SHA256[:8] in caplog.text
    assert files_in(home) == [checkpoint_path(record).name]


def test_wrong_file_in_pieces_is_fetched_once_more_and_refused(home: Path) -> None:
    with serving({}) as server:
        record = interrupted(server, resumable(OTHER, cut=CUT))
        server.answers["/x.pth"] = resumable(OTHER)
        with pytest.raises(ChecksumError) as caught:
            fetch(record)
        assert server.ranges == [f"bytes={CUT}-", None]
    assert (caught.value.expected, caught.value.actual) == (SHA256[:8], hashlib.sha256(OTHER).hexdigest())
    assert files_in(home) == []


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_passing_failure_is_tried_again(code: int, caplog: pytest.LogCaptureFixture) -> None:
    with serving({"/x.pth": in_turn(status(code), status(code), GOOD)}) as server:
        assert fetch(record_of(server.url("/x.pth")), patience=HASTY).read_bytes() == DATA
        assert len(server.requests) == 3
    assert caplog.text.count(f"the server answered {code}") == 2
    assert "(2 of 3)" in caplog.text


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 416])
def test_lasting_failure_is_not(code: int) -> None:
    with serving({"/x.pth": status(code)}) as server:
        with pytest.raises(DownloadError, match=str(code)):
            fetch(record_of(server.url("/x.pth")), patience=HASTY)
        assert len(server.requests) == 1


def test_gives_up_in_the_end() -> None:
    with serving({"/x.pth": status(503)}) as server:
        with pytest.raises(DownloadError, match=r"503 Service Unavailable \(tried 4 times\)"):
            fetch(record_of(server.url("/x.pth")), patience=HASTY)
        assert len(server.requests) == 4


def test_retries_do_not_run_out_while_the_file_grows() -> None:
    data = random.Random(1).randbytes(9_000_000)
    slept: list[float] = []
    with serving({"/x.pth": resumable(data, cut=1_100_000)}) as server:
        record = record_of(server.url("/x.pth"), sha256=hashlib.sha256(data).hexdigest())
        fetch(record, patience=Patience(retries=1, first_delay=0.01, sleep=slept.append))
        assert len(server.requests) == 9
    assert max(slept) <= 0.015


@pytest.mark.parametrize(
    "answer",
    [
        content(DATA[:2_000_000], announced=len(DATA)),
        content(DATA[:2_000_000], announced=len(DATA), ETag='"v1"'),
        resumable(DATA, cut=1000),
        in_turn(FIRST_HALF, piece(DATA, 0)),
    ],
    ids=["no validator", "ranges are ignored", "slow progress", "wrong pieces"],
)
def test_retries_run_out_when_the_file_does_not_grow(answer: Answer) -> None:
    with serving({"/x.pth": answer}) as server:
        with pytest.raises(DownloadError, match="tried"):
            fetch(record_of(server.url("/x.pth")), patience=HASTY)
        assert len(server.requests) <= 8


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        (lambda: "7", 7, 7),
        (lambda: formatdate(time.time() + 100, usegmt=True), 60, 101),
        (lambda: formatdate(time.time() - 100, usegmt=True), 0, 1),
        (lambda: "soon", 0, 1),
        (lambda: "-5", 0, 1),
        (lambda: "Wed, 99 Oct 2015 07:28:00 GMT", 0, 1),
    ],
    ids=["seconds", "date", "past", "words", "negative", "no date"],
)
def test_waits_as_long_as_the_server_asks(header: Callable[[], str], low: float, high: float) -> None:
    slept: list[float] = []
    with serving({"/x.pth": in_turn(status(503, Retry_After=header()), GOOD)}) as server:
        fetch(record_of(server.url("/x.pth")), patience=Patience(first_delay=0.1, sleep=slept.append))
    assert len(slept) == 1
    assert low <= slept[0] <= high


def test_does_not_wait_for_ever() -> None:
    slept: list[float] = []
    with (
        serving({"/x.pth": status(429, Retry_After="86400")}) as server,
        pytest.raises(DownloadError, match=r"429 .* asks to come back in 86400 seconds"),
    ):
        fetch(record_of(server.url("/x.pth")), patience=Patience(sleep=slept.append))
    assert slept == []


def test_delays_grow_and_differ() -> None:
    patience = Patience()
    first, third, last = ([patience.delay(failures) for _ in range(50)] for failures in (1, 3, 99))
    assert 0.25 <= min(first) < max(first) <= 0.75
    assert 1 <= min(third) < max(third) <= 3
    assert 15 <= min(last) < max(last) <= 45


def test_patience_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Patience.from_environment() == Patience()
    monkeypatch.setenv("DCNZOO_RETRIES", "0")
    monkeypatch.setenv("DCNZOO_TIMEOUT", "2.5")
    assert Patience.from_environment() == Patience(retries=0, timeout=2.5)


@pytest.mark.parametrize("name", ["DCNZOO_RETRIES", "DCNZOO_TIMEOUT"])
@pytest.mark.parametrize("value", ["many", "-1", "nan", "inf"])
def test_impatience_that_makes_no_sense(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(DcnzooError, match=f"{name} is '{value}'"):
        Patience.from_environment()


ANSWERS = {
    "good": GOOD,
    "dropped": DROPPED,
    "dropped early": resumable(DATA, cut=1),
    "reset": then(resumable(DATA, cut=500_000), reset),
    "no ranges": content(DATA, ETag='"v1"'),
    "no ranges, dropped": FIRST_HALF,
    "other file": resumable(OTHER),
    "other file, same ETag, dropped": content(OTHER[:CUT], announced=len(DATA), ETag='"v1"'),
    "other file from anywhere": piece(OTHER, CUT),
    "other file from the start": piece(OTHER, 0),
    "from anywhere": piece(DATA, CUT, ETag='"v1"'),
    "short": content(DATA[:-1], ETag='"v1"'),
    "short, longer announced": content(DATA[:-1], announced=len(DATA), ETag='"v1"'),
    "shorter announced": content(DATA, announced=CUT, ETag='"v1"'),
    "huge length announced": content(DATA, announced="9" * 5000),
    "nonsense announced": content(DATA, announced="-1", ETag='"v1"'),
    "empty": content(b"", ETag='"v1"'),
    "busy": status(503),
    "slow down": status(429, Retry_After="0"),
    "range": status(416),
    "moved": status(302, Location="/good.pth"),
    "moved in a circle": status(302, Location="/x.pth"),
    "gone": status(404),
    "nothing": status(204),
    "part of nothing": status(206),
    "hung up": reset,
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.lists(st.sampled_from(sorted(ANSWERS)), min_size=1), runs=st.integers(1, 3))
def test_whatever_the_server_does_no_wrong_file_is_kept(home: Path, first: list[str], runs: int) -> None:
    answers = in_turn(*(ANSWERS[name] for name in first), GOOD)
    with serving({"/x.pth": answers, "/good.pth": GOOD}) as server:
        record = record_of(server.url("/x.pth"))
        for _ in range(runs):
            with suppress(DcnzooError):
                assert fetch(record, patience=Patience(retries=2, first_delay=0.0)).read_bytes() == DATA
        kept = [path for path in home.glob("checkpoints/*") if path.suffix == ".pth"]
        assert all(path.read_bytes() == DATA for path in kept)
        for _ in range(len(first)):  # the server comes round in the end, and so does the file
            with suppress(DcnzooError):
                fetch(record, patience=Patience(retries=2, first_delay=0.0))
        assert fetch(record, patience=Patience(retries=2, first_delay=0.0)).read_bytes() == DATA
    assert files_in(home) == [checkpoint_path(record).name]
    checkpoint_path(record).unlink()


def test_disk_that_is_too_small(home: Path) -> None:
    with serving({"/x.pth": content(b"", announced=10**16, ETag='"v1"')}) as server:
        with pytest.raises(DownloadError, match=r"needs 9094\.9 TiB and .* has .*iB left.* DCNZOO_HOME"):
            fetch(record_of(server.url("/x.pth")))
        assert len(server.requests) == 1
    assert files_in(home) == []


def test_full_disk_keeps_what_has_arrived(home: Path) -> None:
    # A limit on the size of files stands for the disk: the write in the middle fails the same way.
    with serving({"/x.pth": GOOD}) as server:
        record = record_of(server.url("/x.pth"))
        code = f"""
            import resource
            from dcnzoo.download import fetch
            from dcnzoo.errors import DownloadError
            from tests.unit.test_download import record_of

            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
            try:
                fetch(record_of({server.url("/x.pth")!r}))
            except DownloadError as error:
                print(error)
        """
        run = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
        assert "cannot write to" in done.stdout
        assert part_of(record).read_bytes() == DATA[:100_000]
        assert fetch(record).read_bytes() == DATA
        assert server.ranges == [None, "bytes=100000-"]


def test_reason_is_the_network_s_not_the_caller_s() -> None:
    with serving({}) as gone:
        url = gone.url("/x.pth")
    try:
        raise KeyError("of the caller")
    except KeyError:
        with pytest.raises(DownloadError, match="Connection refused"):
            fetch(record_of(url), patience=ONCE)


def test_credentials_are_used_and_not_shown(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str | None] = []

    def note(handler: object) -> None:
        seen.append(handler.headers["Authorization"])  # type: ignore[attr-defined]
        DROPPED(handler)  # type: ignore[arg-type]

    with serving({"/x.pth": note}) as server:
        url = server.url("/x.pth").replace("//", "//user:s3cret@")
        with pytest.raises(DownloadError) as caught:
            fetch(record_of(url), patience=Patience(retries=1, first_delay=0.01))
    assert seen == ["Basic dXNlcjpzM2NyZXQ="] * 2
    told = str(caught.value) + caught.value.url + caplog.text + note_of(record_of(url)).read_text()
    assert "s3cret" not in told


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (167_116_431, "159.4 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (2**60, "1048576.0 TiB"),
    ],
)
def test_readable_size(size: int, text: str) -> None:
    assert readable_size(size) == text
