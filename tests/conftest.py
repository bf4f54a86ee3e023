"""Fixtures and skip rules for the whole suite."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine can make any single example slow; what bounds the time is the number of examples.
settings.register_profile("dcnzoo", deadline=None)
settings.load_profile("dcnzoo")

# A shell's background job ignores interrupts, and so would the programs that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(os.environ.get("DCNZOO_SHARED") or Path(__file__).resolve().parents[2] / "shared")
PICTURES = Path(__file__).parent / "data"
CUDA_SECONDS = 40
"""After which a test of a GPU is taken to hang, and its process ends, since nothing else ends a kernel."""

SETTINGS = ("DCNZOO_MANIFEST", "DCNZOO_MIRROR", "DCNZOO_OFFLINE", "DCNZOO_RETRIES", "DCNZOO_TIMEOUT")


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests start without the user's settings."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with photos, annotations and recorded outputs; CI must have it.

    It lies beside the checkout, or where DCNZOO_SHARED says.
    """
    if not SHARED.is_dir():
        if os.environ.get("CI"):
            pytest.fail("CI must run with the shared folder beside the checkout")
        pytest.skip(f"no shared folder {SHARED}; DCNZOO_SHARED may name another")
    return SHARED


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips `cuda` tests without a GPU, unless DCNZOO_REQUIRE_CUDA=1 makes that a failure."""
    if item.get_closest_marker("cuda") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if os.environ.get("DCNZOO_REQUIRE_CUDA") == "1":
            pytest.fail("DCNZOO_REQUIRE_CUDA=1 and no CUDA device is available")
        pytest.skip("no CUDA device")
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(CUDA_SECONDS, exit=True, file=sys.__stderr__)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Ends the process after a `cuda` test whose kernels have failed: every later call would, too."""
    if item.get_closest_marker("cuda") is None:
        return
    import torch

    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError as error:
        pytest.exit(f"{item.nodeid} has left the GPU with an error: {error}", returncode=3)
    finally:
        faulthandler.cancel_dump_traceback_later()
