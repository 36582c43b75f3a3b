"""Runs attention whose unchosen heads have keys and values that cannot be read.

    python -m tests.plugins.run_unreadable_heads LIBRARY INSTRUCTION_SET OP [all]

Ends by a signal if one is touched; with `all`, where every head is chosen, it has to.
"""

from __future__ import annotations

import ctypes
import mmap
import resource
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from moh_deploy.ops import OPS
from moh_deploy.runtime.onnxruntime.values import from_ort, to_ort
from tests.ops.case_models import case_model, named_inputs
from tests.plugins.aggregated_attention_setups import AggregatedAttentionSetup
from tests.plugins.attention_setups import AttentionSetup
from tests.plugins.kernels import Kernels, assert_right

NOBODY = 1  # a key/value head
TILES = AttentionSetup(
    seq_len=40, kv_len=512, kv_num_heads=3, group=2, head_dim=32, value_dim=32, rank=4, gates="all"
)
PIXELS = AggregatedAttentionSetup(
    num_heads=3, head_dim=1024, height=5, width=7, pooled=3, gates="all"
)
Setup = AttentionSetup | AggregatedAttentionSetup
SETUPS: dict[str, tuple[Setup, ...]] = {
    "MoHAttention": (TILES, replace(TILES, seq_len=1), replace(TILES, is_causal=True)),
    "MoHAggregatedAttention": (PIXELS, replace(PIXELS, kernel_width=5, optional=())),
}


def main(library: str, instruction_set: str, op: str, *, everybody: bool) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kernels = Kernels(Path(library), instruction_set)
    for setup in SETUPS[op]:
        inputs = setup.case().inputs()
        if not everybody:
            names = [given.name for given in OPS[op].inputs]
            _close(inputs[names.index("gates")], setup)
        case = replace(setup.case(), build=lambda rng, inputs=inputs: inputs)
        arrays = named_inputs(case)
        arrays |= {
            name: _copy_with_unreadable_head(array, setup)
            for name, array in arrays.items()
            if name in ("K", "V", "pooled_K", "pooled_V")
        }
        values = {name: to_ort(array) for name, array in arrays.items()}
        outputs = kernels.session(case_model(case)).run_with_ort_values(None, values)
        assert_right(case, [from_ort(output) for output in outputs])
    print("done")


def _close(gates: np.ndarray, setup: Setup) -> None:
    group = setup.group if isinstance(setup, AttentionSetup) else 1
    gates[..., NOBODY * group : (NOBODY + 1) * group] = 0.0


def _copy_with_unreadable_head(array: np.ndarray, setup: Setup) -> np.ndarray:
    """[1, H, T, D], or [1, N, H*D]: what a head has in one piece is a whole number of pages."""
    memory = mmap.mmap(-1, array.nbytes)
    copy = np.frombuffer(memory, array.dtype).reshape(array.shape)
    copy[:] = array
    heads = array.shape[1] if array.ndim == 4 else setup.num_heads
    pieces = 1 if array.ndim == 4 else array.shape[1]
    size = array.nbytes // heads // pieces
    assert size % mmap.PAGESIZE == 0
    libc = ctypes.CDLL(None, use_errno=True)
    for piece in range(pieces):
        address = ctypes.c_void_p(copy.ctypes.data + (piece * heads + NOBODY) * size)
        assert libc.mprotect(address, ctypes.c_size_t(size), 0) == 0
    return copy


if __name__ == "__main__":
    main(*sys.argv[1:4], everybody=sys.argv[4:] == ["all"])
