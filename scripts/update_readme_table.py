"""Writes the table of checkpoints into the README, from weights.yaml.

python scripts/update_readme_table.py           # rewrites what is between the two marker comments
python scripts/update_readme_table.py --check   # writes nothing; exit code 1 if the README is out of date
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dcnzoo.manifest import Record, load_manifest

BEGIN, END = "<!-- checkpoints:begin -->", "<!-- checkpoints:end -->"
COLUMNS = (
    "name",
    "backbone",
    "convolutions c3–c5",
    "RoI pooling",
    "box AP",
    "mask AP",
    "images/s (V100)",
)


def main() -> int:
    """Rewrites or checks the README; gives the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only tell whether the table is up to date")
    parser.add_argument("--readme", type=Path, default=Path(__file__).parents[1] / "README.md")
    arguments = parser.parse_args()

    os.environ.pop("DCNZOO_MANIFEST", None)  # the README shows the built-in checkpoints only
    old = arguments.readme.read_text(encoding="utf-8")
    try:
        new = with_table(old, table(list(load_manifest().records.values())))
    except ValueError as error:
        print(f"{arguments.readme}: {error}", file=sys.stderr)
        return 1
    if new == old:
        return 0
    if arguments.check:
        print(f"{arguments.readme} is out of date: run python scripts/{Path(__file__).name}", file=sys.stderr)
        return 1
    arguments.readme.write_text(new, encoding="utf-8")
    return 0


def with_table(text: str, table: str) -> str:
    """The text with what stands between the markers replaced.

    Raises:
        ValueError: the two markers are not there once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected one {BEGIN} and after it one {END}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def table(records: list[Record]) -> str:
    """The records as a Markdown table."""
    return "\n".join(_line(cells) for cells in (COLUMNS, ["---"] * len(COLUMNS), *map(_row, records)))


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _row(record: Record) -> list[str]:
    architecture, published = record.architecture, record.published
    groups = f", {architecture.deform_groups} groups" if architecture.deform_groups > 1 else ""
    figures = (published.box_ap, published.mask_ap, published.fps_v100)
    name = f"`{record.name}`"
    return [
        f"{name} (inside the package)" if record.built_in else f"[{name}]({record.urls[0]})",
        architecture.backbone,
        architecture.conv + groups,
        architecture.pool,
        *("–" if figure is None else str(figure) for figure in figures),
    ]


if __name__ == "__main__":
    sys.exit(main())
