"""Makes the model inside the package: draws its pictures, trains it, tests it, puts it into place.

    python scripts/train_builtin.py [--out DIR] [--resume]

Everything is seeded. The result is dcnzoo/weights/NAME.safetensors, and its hash and AP in weights.yaml; the
AP is that of the file itself, by `dcnzoo eval`, on 500 pictures that nothing was trained or chosen on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dcnzoo.checkpoint import load_checkpoint
from dcnzoo.download import sha256_of
from dcnzoo.manifest import load_manifest
from dcnzoo.safe_copy import Description, write_safe_copy
from dcnzoo.shapes import write_set

CHECKOUT = Path(__file__).resolve().parents[1]
ARCHITECTURE = "cascade_mask_rcnn_r18w16_fpn48_fc192_mdconv_c3-c5"
STARTER = "mask_rcnn_r18w16_fpn48_fc256_mdconv_c3-c5"
"""One head for three is quicker to train; the cascade takes over all but the heads."""

NAME = f"{ARCHITECTURE}_shapes"
WEIGHTS = CHECKOUT / "dcnzoo" / "weights" / f"{NAME}.safetensors"

PROCESSES = 2
"""That share the work; each has a batch of its own, and batch norm the statistics of that."""

SETS = {
    "first": {"count": 4000, "seed": 1},
    "second": {"count": 8000, "seed": 4},
    "test": {"count": 500, "seed": 2},
}
RECIPE = {
    "--batch-size": 4,
    "--optimizer": "adamw",
    "--decay": "cosine",
    "--warmup": 100,
    "--clip-norm": 10,
}
SMALL_INPUT = {"--short-side": 192, "--long-side": 320}
LARGE_INPUT = {"--short-side": "224,256", "--long-side": 448}
FEW_SAMPLES = {"--roi-samples": 32}
MANY_SAMPLES = {"--roi-samples": 128, "--mask-samples": 4, "--ema": 0.999, "--vertical-flip": 0.5}


@dataclass(frozen=True)
class Round:
    """A training that begins with the weights of the one before and a high rate (arXiv:1608.03983).

    Attributes:
        architecture: what is trained.
        pictures: the set to learn from.
        options: of `dcnzoo train`.
    """

    architecture: str
    pictures: str
    options: dict[str, float | str]


ROUNDS = (
    Round(
        STARTER,
        "first",
        {"--epochs": 6, "--learning-rate": 0.0015, "--seed": 0, **FEW_SAMPLES, **SMALL_INPUT},
    ),
    Round(
        STARTER,
        "first",
        {"--epochs": 2, "--learning-rate": 0.0008, "--seed": 1, **FEW_SAMPLES, **SMALL_INPUT},
    ),
    Round(
        STARTER,
        "first",
        {"--epochs": 14, "--learning-rate": 0.001, "--seed": 2, **MANY_SAMPLES, **SMALL_INPUT},
    ),
    Round(
        ARCHITECTURE,
        "second",
        {"--epochs": 7, "--learning-rate": 0.001, "--seed": 3, **MANY_SAMPLES, **LARGE_INPUT},
    ),
)


def main() -> None:
    """Parses the arguments and makes the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=CHECKOUT / "build" / "builtin", help="folder for the rest"
    )
    parser.add_argument("--resume", action="store_true", help="go on with a training that was stopped")
    arguments = parser.parse_args()
    out: Path = arguments.out
    for name, what in SETS.items():
        if not (out / name / "annotations.json").is_file():
            write_set(out / name, **what)
    for number in range(len(ROUNDS)):
        train(out, number, resume=arguments.resume)
    store(weights_of(out, len(ROUNDS) - 1))
    note(test(out))


def train(out: Path, number: int, *, resume: bool) -> None:
    """Trains a round."""
    this = ROUNDS[number]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", PROCESSES]
    pictures = out / this.pictures
    data = ["--train", pictures / "annotations.json", "--images", pictures / "images", "--strict"]
    start: list[object] = ["--from-scratch"]
    if number > 0:
        start = ["--weights", weights_of(out, number - 1), "--norm", "trainable", "--frozen-stages", -1]
    options = [word for pair in (RECIPE | this.options).items() for word in pair]
    folder = ["--out", weights_of(out, number).parent, "--resume" if resume else "--overwrite"]
    python(*several, "-m", "dcnzoo", "train", "--arch", this.architecture, *start, *data, *options, *folder)


def weights_of(out: Path, number: int) -> Path:
    """Where the weights of a round lie."""
    return out / f"round{number}" / "last.pth"


def store(path: Path) -> None:
    """Writes trained weights to where the package has them, in half precision."""
    record = load_manifest("").find(NAME)
    checkpoint = load_checkpoint(path)
    halves = {name: tensor.half() for name, tensor in checkpoint.state_dict.items() if _is_needed(name)}
    origin = f"scripts/{Path(__file__).name}"
    description = Description(
        record.architecture, record.classes, record.preprocessing, origin, sha256_of(path)
    )
    WEIGHTS.parent.mkdir(exist_ok=True)
    write_safe_copy(WEIGHTS, halves, description, overwrite=True)


def _is_needed(name: str) -> bool:
    return not name.endswith(".num_batches_tracked")


def test(out: Path) -> dict[str, float]:
    """Evaluates the stored weights on the pictures in `out`/test: box AP and mask AP in percent."""
    data = ["--annotations", out / "test" / "annotations.json", "--images", out / "test" / "images"]
    python("-m", "dcnzoo", "eval", "--weights", WEIGHTS, *data, "--out", out / "eval", "--overwrite")
    metrics = json.loads((out / "eval" / "metrics.json").read_text(encoding="utf-8"))
    return {"box_ap": round(100 * metrics["bbox"]["AP"], 1), "mask_ap": round(100 * metrics["segm"]["AP"], 1)}


def note(figures: dict[str, float]) -> None:
    """Writes the hash of the stored weights and their AP into the manifest."""
    path = CHECKOUT / "weights.yaml"
    before, mark, record = path.read_text(encoding="utf-8").partition(f"  - name: {NAME}\n")
    record = re.sub(r'sha256: "\w*"', f'sha256: "{sha256_of(WEIGHTS)[:8]}"', record, count=1)
    found = ", ".join(f"{name}: {value}" for name, value in figures.items())
    record = re.sub(r"published: {.*}", f"published: {{{found}}}", record, count=1)
    path.write_text(before + mark + record, encoding="utf-8")
    print(f"{WEIGHTS.name}: {WEIGHTS.stat().st_size / 1e6:.1f} MB, {found}")


def python(*arguments: object) -> None:
    """Runs Python with these arguments."""
    subprocess.run([sys.executable, *map(str, arguments)], check=True, cwd=CHECKOUT)


if __name__ == "__main__":
    main()
