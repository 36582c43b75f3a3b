"""Runs attention whose unchosen heads have keys and values that cannot be read.

    python -m tests.plugins.run_unreadable_heads LIBRARY INSTRUCTION_SET [all]

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

from moh_deploy.backends.ort_values import from_ort, to_ort
from tests.ops.case_models import case_model, named_inputs
from tests.plugins.attention_setups import AttentionSetup
from tests.plugins.kernels import Kernels, assert_right

NOBODY = 1  # a key/value head
TILES = AttentionSetup(
    seq_len=40, kv_len=512, kv_num_heads=3, group=2, head_dim=32, value_dim=32, rank=4, gates="all"
)


def main(library: str, instruction_set: str, *, everybody: bool) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kernels = Kernels(Path(library), instruction_set)
    for setup in (TILES, replace(TILES, seq_len=1), replace(TILES, is_causal=True)):
        query, key, value, gates = setup.case().inputs()
        if not everybody:
            gates[..., NOBODY * setup.group : (NOBODY + 1) * setup.group] = 0.0
        inputs = (query, key, value, gates)
        case = replace(setup.case(), build=lambda rng, inputs=inputs: inputs)
        arrays = named_inputs(case)
        arrays |= {name: _copy_with_unreadable_head(arrays[name]) for name in ("K", "V")}
        values = {name: to_ort(array) for name, array in arrays.items()}
        outputs = kernels.session(case_model(case)).run_with_ort_values(None, values)
        assert_right(case, [from_ort(output) for output in outputs])
    print("done")


def _copy_with_unreadable_head(array: np.ndarray) -> np.ndarray:
    """[1, H, T, D], each head a whole number of pages."""
    memory = mmap.mmap(-1, array.nbytes)
    copy = np.frombuffer(memory, array.dtype).reshape(array.shape)
    copy[:] = array
    head = array.nbytes // array.shape[1]
    assert head % mmap.PAGESIZE == 0
    address = ctypes.c_void_p(copy.ctypes.data + NOBODY * head)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(address, ctypes.c_size_t(head), 0) == 0
    return copy


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], everybody=sys.argv[3:] == ["all"])
