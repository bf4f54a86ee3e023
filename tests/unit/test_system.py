"""Facts about the machine."""

from __future__ import annotations

import json
import platform

import numpy as np
import torch

from dcnzoo import __version__, ops, system


def test_stamp() -> None:
    stamp = system.stamp()
    assert json.loads(json.dumps(stamp)) == stamp
    assert stamp["versions"]["dcnzoo"] == __version__
    assert stamp["versions"]["numpy"] == np.__version__
    assert stamp["CPU"]["threads of PyTorch"] == torch.get_num_threads()
    assert stamp["operators"]["backend"] == ops.active_backend()[0]
    assert stamp["platform"] == platform.platform()


def test_peak_memory_grows_and_stays() -> None:
    before = system.peak_memory()
    held = b"x" * (before + 50_000_000)
    del held
    assert system.peak_memory() > before + 40_000_000
