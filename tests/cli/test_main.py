"""Commands are found, and errors become words and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dcnzoo import __version__
from dcnzoo.cli.main import COMMANDS, cli
from dcnzoo.errors import DcnzooError, UnknownModelError
from tests.cli.conftest import Program

FAILURES: dict[str, BaseException] = {
    "package": DcnzooError("the cause; the cure"),
    "model": UnknownModelError("x", ["y", "z"]),
    "bug": ZeroDivisionError("division by zero"),
    "file": FileNotFoundError(2, "No such file or directory", "x.txt"),
    "usage": click.UsageError("Give this or that."),
    "click": click.ClickException("something of click's"),
    "interrupt": KeyboardInterrupt(),
    "abort": click.Abort(),
}


@click.command()
@click.argument("failure")
def fail(failure: str) -> None:
    raise FAILURES[failure]


@click.command()
@click.argument("code", type=int)
@click.pass_context
def leave(context: click.Context, code: int) -> None:
    context.exit(code)


@pytest.fixture(autouse=True)
def commands_for_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "commands", dict(cli.commands))
    for name in ("fail", "leave"):
        monkeypatch.setitem(COMMANDS, name, f"{__name__}:{name}")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_commands(dcnzoo: Program, flag: str) -> None:
    code, out, err = dcnzoo(flag)
    assert (code, err) == (0, "")
    lines = dict(
        line.split(maxsplit=1) for line in out.partition("Commands:\n")[2].splitlines() if "  " in line[2:]
    )
    assert {"predict", "eval", "list", "info", "download", "doctor"} <= set(lines)
    assert all(not text.endswith("...") for text in lines.values())


@pytest.mark.parametrize("command", ["predict", "eval", "list", "info", "download", "doctor"])
def test_every_command_has_help(dcnzoo: Program, command: str) -> None:
    code, out, err = dcnzoo(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: dcnzoo {command} ")
    assert out.count("--manifest FILE") == 1
    assert out.count("--debug") == 1


def test_version(dcnzoo: Program) -> None:
    assert dcnzoo("--version") == (0, f"dcnzoo {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["list"], ["list", "r50", "--json"], ["info", "faster_rcnn_r50_fpn_dpool_1x_coco"]],
)
def test_light_commands_import_nothing_heavy(arguments: list[str]) -> None:
    heavy = "{'torch', 'torchvision', 'numpy', 'PIL', 'requests', 'tqdm', 'pycocotools'}"
    code = (
        f"import sys; from dcnzoo.cli.main import run; code = run({arguments});"
        f"print(sorted({heavy} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_runs_as_a_module() -> None:
    done = python("-m", "dcnzoo", "--version")
    assert (done.returncode, done.stdout) == (0, f"dcnzoo {__version__}\n")


def test_nothing_to_do_shows_help_and_is_wrong_usage(dcnzoo: Program) -> None:
    code, out, err = dcnzoo()
    assert code == 2
    assert "Usage: dcnzoo" in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["predikt", "x.jpg"], "Did you mean 'predict'?"),
        (["frobnicate"], "There are predict, eval, train, merge, bench, list, info, download, cache, "),
        (["--frobnicate"], "No such option"),
        (["list", "--frobnicate"], "No such option"),
        (["list", "a", "b"], "Got unexpected extra argument (b)"),
        (["info"], "Missing argument 'NAME|FILE'"),
        (["--manifest"], "requires an argument"),
        (["fail", "usage"], "Give this or that."),
    ],
)
def test_wrong_usage(dcnzoo: Program, arguments: list[str], message: str) -> None:
    code, out, err = dcnzoo(*arguments)
    assert (code, out) == (2, "")
    assert "Error: " in err
    assert message in err


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        ("package", "error: the cause; the cure"),
        ("model", "error: unknown model 'x'; did you mean y or z?"),
        ("bug", "error: ZeroDivisionError: division by zero (run again with --debug for the traceback)"),
        (
            "file",
            "error: FileNotFoundError: [Errno 2] No such file or directory: 'x.txt'"
            " (run again with --debug for the traceback)",
        ),
        ("click", "Error: something of click's"),
    ],
)
def test_error_is_one_line(dcnzoo: Program, failure: str, line: str) -> None:
    assert dcnzoo("fail", failure) == (1, "", f"{line}\n")


@pytest.mark.parametrize("failure", ["package", "bug"])
@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_the_traceback(dcnzoo: Program, failure: str, before: bool) -> None:
    code, out, err = dcnzoo("--debug", "fail", failure) if before else dcnzoo("fail", failure, "--debug")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback (most recent call last):")
    assert "raise FAILURES[failure]" in err
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("failure", ["interrupt", "abort"])
def test_interruption(dcnzoo: Program, failure: str) -> None:
    code, out, err = dcnzoo("fail", failure)
    assert (code, out, err.strip()) == (130, "", "interrupted")


@pytest.mark.parametrize("code", [0, 1, 5])
def test_exit_code_of_a_command(dcnzoo: Program, code: int) -> None:
    assert dcnzoo("leave", code) == (code, "", "")


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"]], ids=["at the end", "midway"])
def test_reader_that_leaves_early_is_told_nothing(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "dcnzoo", *arguments],
            stdout=closed,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": ""},  # else the end never comes into it
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "shift_jis"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_characters_that_the_output_does_not_have(
    own_manifest: Path, encoding: str, options: list[str]
) -> None:
    own_manifest.write_text(own_manifest.read_text().replace("WBC", "Zelle\xe9\U0001f9ab"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "dcnzoo", "info", "cells", "--manifest", own_manifest, *options],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    if options:
        assert json.loads(done.stdout)["classes"]["names"][1] == "Zelle\xe9\U0001f9ab"
    else:
        assert rb"\U0001f9ab" in done.stdout


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Runs `dcnzoo COMMAND` in a shell, with its redirections."""
    program = f"{sys.executable} -m dcnzoo {command}"
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    return subprocess.run(["sh", "-c", program], capture_output=True, text=True, env=env, timeout=60)


@pytest.mark.parametrize(
    ("command", "code", "out"),
    [
        ("--version 2>&-", 0, f"dcnzoo {__version__}\n"),
        ("list >&-", 0, ""),
        ("list >&- 2>&- <&-", 0, ""),
        ("info nothing 2>&-", 1, ""),
    ],
)
def test_closed_streams(command: str, code: int, out: str) -> None:
    done = shell(command)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, "")


@pytest.mark.parametrize("command", ["--version", "list", "list --json"])
def test_full_output(command: str) -> None:
    done = shell(f"{command} >/dev/full")
    line = "error: cannot write to the standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_manifest_before_or_after_the_command(dcnzoo: Program, own_manifest: Path) -> None:
    before = dcnzoo("--manifest", own_manifest, "list", "cells")
    assert before.code == 0
    assert "cells" in before.out
    assert dcnzoo("list", "cells", "--manifest", own_manifest) == before


def test_manifest_of_the_environment(
    dcnzoo: Program, own_manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCNZOO_MANIFEST", str(own_manifest))
    assert "cells" in dcnzoo("list").out


def test_broken_manifest(dcnzoo: Program, own_manifest: Path) -> None:
    own_manifest.write_text(own_manifest.read_text().replace("resnet50", "resnet5"))
    code, out, err = dcnzoo("list", "--manifest", own_manifest)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: manifest {own_manifest}, record 'cells', field 'architecture.backbone': ")
    assert err.count("\n") == 1
