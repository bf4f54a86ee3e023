"""Deterministic stand-in weights for detector checkpoints.

`seeded_state_dict(layout, seed)` fills every tensor of a checkpoint layout
(`{name: (shape, dtype)}`) from a random stream that depends only on the seed
and the tensor's name, so two programs that never meet get bit-identical
weights.  Scales are chosen so that activations stay bounded through 33
residual blocks, offsets move samples by a few pixels, and the heads produce a
realistic spread of scores: the network is untrained, but every branch of the
inference path runs.

Streams come from numpy's legacy `RandomState`, whose output numpy guarantees
never to change.
"""

from __future__ import annotations

import hashlib
import math
import re

import numpy as np


def _rng(seed: int, name: str) -> np.random.RandomState:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "little"))


def _is_head(name: str) -> bool:
    return any(
        part in name
        for part in ("rpn_cls", "rpn_reg", "fc_cls", "fc_reg", "shared_fcs", "offset_fc", "mask_fc")
    )


def _std(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation of a weight tensor, by the layer that it feeds."""
    fan_in = int(np.prod(shape[1:]))
    he = math.sqrt(2.0 / fan_in)
    if "conv_offset" in name:  # offsets of about 1.5 px, masks around 0.5
        return 1.2 / math.sqrt(fan_in)
    if "offset_fc.4" in name or "mask_fc.2" in name:
        return 1.0 / math.sqrt(fan_in)
    if "rpn_cls" in name:
        return 2.0 / math.sqrt(fan_in)
    if "rpn_reg" in name:
        return 0.6 / math.sqrt(fan_in)
    if "fc_cls" in name:
        return 3.0 / math.sqrt(fan_in)
    if "fc_reg" in name:
        return 1.5 / math.sqrt(fan_in)
    if "conv_logits" in name:
        return 4.0 / math.sqrt(fan_in)
    if name.startswith("neck."):
        return 0.6 / math.sqrt(fan_in)
    return he


def seeded_tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 array (int64 for counters) of `shape` for the tensor `name`."""
    rng = _rng(seed, name)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.array(1000, dtype=np.int64)
    if leaf == "running_mean":
        value = 0.2 * rng.standard_normal(shape)
    elif leaf == "running_var":
        value = rng.uniform(0.6, 1.6, shape)
    elif leaf == "weight" and len(shape) == 1:  # normalisation scale
        value = rng.uniform(0.7, 1.3, shape)
        block = re.search(r"layer\d+\.(\d+)\.bn3\.", name)
        if block:  # deep residual sums stay bounded
            value *= 0.3 / math.sqrt(1 + int(block.group(1)))
    elif leaf == "bias":
        value = 0.1 * rng.standard_normal(shape)
        if name.endswith("fc_cls.bias"):
            value[-1] += 2.0  # background, the last class
    else:
        value = _std(name, shape) * rng.standard_normal(shape)
        if _is_head(name):  # blind to the common mode of ReLU features
            value -= value.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    return np.asarray(value, dtype=np.float32)


def seeded_state_dict(layout: dict, seed: int) -> dict[str, np.ndarray]:
    """Arrays for every entry of `layout`: {name: [shape, dtype]}."""
    return {name: seeded_tensor(name, tuple(shape), seed) for name, (shape, _) in layout.items()}
