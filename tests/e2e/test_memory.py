"""Memory does not grow with the number of images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_stream.py"


@pytest.mark.e2e
def test_memory_stays_flat(tmp_path: Path) -> None:
    """Three thousand images through readers, journal and writers; ten thousand are in docs/reliability.md."""
    options = "--images 3000 --size 48x32 --sides 32x48 --workers 1 --formats jsonl,coco,csv"
    done = subprocess.run(
        [sys.executable, SCRIPT, *options.split()], cwd=tmp_path, capture_output=True, check=True, timeout=600
    )
    figures = json.loads(done.stdout)
    assert len(figures["resident_mib"]) == 20
    assert figures["growth_mib"] < 5
