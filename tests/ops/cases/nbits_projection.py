"""The cases of MoHQueryProjectionNBits and MoHOutputProjectionNBits.

An implementation may round X to 8 bits, by blocks of 32 with a scale each. So X holds numbers here
that this does not change, and every implementation has to be as exact as sums in float32 are.
"""

import numpy as np

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays
from tests.ops.cases.projection import SETUPS, Setup

BLOCK = 32
STEP = 2.0**-6

# What is not finite has no scale: these make NaN where the reference has an infinity.
_NOT_HERE = ("inf_token",)


def in_8_bits(x: np.ndarray) -> np.ndarray:
    """Return X [B, S, K] in multiples of STEP: of each block the largest is 127, or all are 0."""
    rounded = np.clip(np.round(x / STEP), -127, 127) * STEP
    for begin in range(0, x.shape[2], BLOCK):
        block = rounded[..., begin : begin + BLOCK]  # [B, S, up to 32]
        first = np.argmax(block != 0, axis=-1)[..., None]
        largest = np.where(block.any(axis=-1, keepdims=True), 127 * STEP, 0.0)
        largest = np.where(np.isnan(block).any(axis=-1, keepdims=True), np.nan, largest)
        np.put_along_axis(block, first, largest, axis=-1)
    return rounded


def in_4_bits(weight: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return digits [N, blocks, 16] and scales [N, blocks] for a weight as large as that [K, N]."""
    rows, columns = weight.shape
    blocks = -(-rows // BLOCK)
    scales = rng.uniform(0.5, 1.5, (columns, blocks)) * rows**-0.5 / 4
    # Behind the last row, too: what stands there is not to be read.
    return rng.integers(0, 256, (columns, blocks, BLOCK // 2), dtype=np.uint8), scales


def rounded_inputs(inputs: Arrays, rng: np.random.Generator) -> Arrays:
    """Return X, W, gates, scales and the bias of a projection in few bits."""
    x, weight, gates, bias = (*inputs, None)[:4]
    assert x is not None
    assert weight is not None
    packed, scales = in_4_bits(weight, rng)
    return (in_8_bits(x), packed, gates, scales, *([] if bias is None else [bias]))


def nbits_case(case: Case, rows: int, columns: int) -> Case:
    """Return the like of a projection's case in float32."""
    attributes = {**case.attributes, "in_features": rows, "out_features": columns}

    def build(rng: np.random.Generator) -> Arrays:
        return rounded_inputs(case.build(rng), rng)

    return Case(case.name, f"{case.op}NBits", case.why, attributes, build)


def _query(name: str, why: str, setup: Setup) -> Case:
    case = setup.query_case(name, why)
    return nbits_case(case, setup.width, setup.num_heads * setup.head_dim)


def _output(name: str, why: str, setup: Setup) -> Case:
    case = setup.output_case(name, why)
    return nbits_case(case, setup.num_heads * setup.head_dim, setup.width)


_TABLE: dict[str, tuple[str, Setup]] = {
    **{name: entry for name, entry in SETUPS.items() if name not in _NOT_HERE},
    "whole_heads": (
        "Heads that fill vectors of columns and blocks of rows: each is skipped by itself.",
        Setup(seq_len=9, num_heads=6, head_dim=64, width=96),
    ),
    "heads_of_two_blocks": (
        "Heads end within blocks, and blocks within vectors.",
        Setup(seq_len=11, num_heads=7, head_dim=48, width=80, open_share=0.3),
    ),
}

QUERY_CASES = tuple(_query(name, why, setup) for name, (why, setup) in _TABLE.items())
OUTPUT_CASES = tuple(_output(name, why, setup) for name, (why, setup) in _TABLE.items())
