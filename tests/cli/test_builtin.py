"""The model inside the package: found, verified and used without a download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcnzoo.checkpoint import load_checkpoint
from dcnzoo.manifest import Record, load_manifest
from tests.cli.conftest import Program

EXAMPLES = Path(__file__).parents[2] / "examples" / "shapes"
DATA = ("--annotations", EXAMPLES / "annotations.json", "--images", EXAMPLES / "images")
MOST_BYTES = 6_000_000


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCNZOO_OFFLINE", "1")
    monkeypatch.delenv("DCNZOO_MANIFEST", raising=False)


@pytest.fixture
def record() -> Record:
    (record,) = (record for record in load_manifest().records.values() if record.built_in)
    return record


def test_is_listed_as_built_in(dcnzoo: Program, record: Record) -> None:
    code, out, err = dcnzoo("list", record.name)
    assert (code, err) == (0, "")
    assert out.splitlines()[1].endswith("built in")


def test_info_shows_where_it_lies(dcnzoo: Program, record: Record) -> None:
    out = dcnzoo("info", record.name).out
    assert "part of the package" in out
    assert out.splitlines()[-1].endswith(f"{record.name}.safetensors")


def test_download_verifies_and_leaves_it_in_place(dcnzoo: Program, record: Record, home: Path) -> None:
    code, out, err = dcnzoo("download", record.name)
    assert (code, err) == (0, "")
    assert 1_000_000 < Path(out.strip()).stat().st_size <= MOST_BYTES
    assert not home.exists()


@pytest.mark.parametrize("command", [("list",), ("verify",), ("clear", "--yes")])
def test_cache_has_nothing_of_it(dcnzoo: Program, record: Record, command: tuple[str, ...]) -> None:
    code, _, err = dcnzoo("cache", *command, record.name)
    assert (code, err) == (0, f"{record.name} is part of the package and needs no cache\n")


def test_file_describes_itself_as_the_manifest_does(dcnzoo: Program, record: Record) -> None:
    checkpoint = load_checkpoint(dcnzoo("download", record.name).out.strip())
    assert checkpoint.description is not None
    assert checkpoint.description.architecture == record.architecture
    assert checkpoint.description.preprocessing == record.preprocessing
    assert checkpoint.description.classes == record.classes


def test_is_as_good_on_the_examples_as_stated(dcnzoo: Program, record: Record, tmp_path: Path) -> None:
    code, out, _ = dcnzoo(
        "eval",
        "--model",
        record.name,
        *DATA,
        "--batch-size",
        8,
        "--workers",
        0,
        "--json",
        "--out",
        tmp_path / "out",
    )
    metrics = json.loads(out)
    assert code == 0
    assert record.published.box_ap is not None
    assert record.published.mask_ap is not None
    assert 100 * metrics["bbox"]["AP"] > record.published.box_ap - 8  # few pictures: two dozen
    assert 100 * metrics["segm"]["AP"] > record.published.mask_ap - 8


def test_bench_runs_on_the_examples(dcnzoo: Program, record: Record) -> None:
    code, out, _ = dcnzoo(
        "bench", "--model", record.name, "--images", EXAMPLES / "images", "--repeats", 2, "--warmup", 1
    )
    assert code == 0
    assert record.name in out
