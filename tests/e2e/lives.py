"""Runs the program many times, each time in a process of its own that is ready at once.

    python -m tests.e2e.lives [WEIGHTS ARCH SHORT_SIDE LONG_SIDE]

imports the program and loads the model, if one is given, then reads one run per line of standard input, in
JSON: `arguments` of the command line, and `setup`, Python statements that come before. It forks a process
for it, prints the number of the process, and its exit code once it has ended.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import torch

import dcnzoo.cli.eval
import dcnzoo.cli.predict
import dcnzoo.evaluation.coco_metrics
import dcnzoo.evaluation.collect
import dcnzoo.evaluation.report
import dcnzoo.predictor
import dcnzoo.stream
import dcnzoo.training.start
from dcnzoo.cli.main import run


def load(weights: str, arch: str, short_side: str, long_side: str) -> None:
    """Loads the model, once for all."""
    sides = {"short_side": int(short_side), "long_side": int(long_side)}
    predictor = dcnzoo.predictor.load(weights=weights, arch=arch, device="cpu", **sides)
    predictor(np.zeros((24, 32, 3), np.uint8))  # what is made when it is first needed is made now
    dcnzoo.predictor.load = lambda *_, **__: predictor


def main(*model: str) -> None:
    """Serves until standard input ends."""
    torch.set_num_threads(1)  # threads do not survive a fork
    if model:
        load(*model)
    print("ready", flush=True)
    for line in sys.stdin:
        life = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.dup2(2, 1)  # standard output is for this program's own answers
            exec(life["setup"])
            os._exit(run(life["arguments"]))
        print("process", pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
