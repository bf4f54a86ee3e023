"""Writes a checkpoint with the exact layout of a published one and seeded random weights.

    python scripts/make_standin.py NAME OUT.pth

It runs every branch of a detector without a download; its detections mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.parity.standin import NAMES, write_checkpoint


def main() -> None:
    """Parses the arguments and writes the file."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("name", choices=NAMES, metavar="NAME")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write_checkpoint(arguments.name, arguments.out)


if __name__ == "__main__":
    main()
