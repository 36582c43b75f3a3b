"""Runs many cases on a library, for what watches it from outside: a sanitizer, say.

    python -m tests.plugins.run_everything LIBRARY

Every input and output lies in memory of exactly its size, so that nothing beyond it can be touched
unseen. Results are compared with the reference, too.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import FLOAT_TYPES
from moh_deploy.runtime import kernel_use as ort_kernels
from moh_deploy.runtime.kernel_use import BFLOAT16_SETS
from tests.ops.case_models import case_model
from tests.ops.cases import OP_CASES
from tests.plugins.attention_setups import AttentionSetup, MaskSetup
from tests.plugins.draws import (
    aggregated_attention_setups,
    attention_setups,
    nbits_projection_setups,
    projection_setups,
    router_setups,
    token_conv_setups,
)
from tests.plugins.kernels import EMULATED_AMX, Kernels, assert_right, memory_for, run_into

DRAWS = 60
MOST_PRODUCTS = 1_000_000

_TILES = AttentionSetup(seq_len=150, kv_len=270, kv_num_heads=1, head_dim=9, value_dim=7)
_LARGE = (
    replace(_TILES, gates="all"),
    replace(_TILES, kv_len=530, is_causal=True, rank=4),
    replace(_TILES, mask=MaskSetup(pattern="blocks")),
    replace(_TILES, mask=MaskSetup("float16", pattern="window"), is_causal=True),
    replace(_TILES, seq_len=1, kv_num_heads=3, kv_len=530),
    replace(_TILES, seq_len=40, kv_num_heads=8, head_dim=128),  # rows a page apart
)


def main(library: Path) -> None:
    cases = [*_named(), *_drawn()]
    # No sanitizer sees what AMX reads; of its twin it sees everything.
    for name in (*ort_kernels.instruction_sets(library), EMULATED_AMX):
        kernels = Kernels(library, name, threads=2, arena=False)
        for case in cases:
            _run(kernels, case)
        if name in (*BFLOAT16_SETS, EMULATED_AMX):
            for case in cases:
                _run(replace(kernels, compute_type="bfloat16"), case, check=False)
        print(f"{name}: {len(cases)} cases", flush=True)


def _named() -> Iterator[Case]:
    for spec in OPS.values():
        yield from OP_CASES[spec.name]
    for setup in _LARGE:
        for dtype in FLOAT_TYPES:
            yield replace(setup, dtype=dtype).case()


def _drawn() -> list[Case]:
    cases: list[Case] = []
    for setups in (
        attention_setups(most_products=MOST_PRODUCTS),
        aggregated_attention_setups(most_products=MOST_PRODUCTS),
        projection_setups(most_products=MOST_PRODUCTS),
        nbits_projection_setups(most_products=MOST_PRODUCTS),
        router_setups(),
        token_conv_setups(),
    ):
        draw = given(setups)(lambda setup: cases.append(setup.case()))
        settings(
            max_examples=DRAWS,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=HealthCheck,
        )(draw)()
    return cases


def _run(kernels: Kernels, case: Case, *, check: bool = True) -> None:
    output = run_into(memory_for(case, np.nan), kernels.session(case_model(case)), case)
    if check:
        assert_right(case, [output])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
