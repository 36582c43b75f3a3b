"""Runs attention with keys and values that cannot be read: those of unchosen heads, or those
behind the filled part of a cache.

    python -m tests.plugins.run_unreadable_heads LIBRARY INSTRUCTION_SET OP|room [all]

Ends by a signal if one is touched; with `all`, where every head is chosen or every key filled, it
has to.
"""

import ctypes
import mmap
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.runtime.onnxruntime.values import from_ort, to_ort
from tests.ops.case_models import case_model, named_inputs
from tests.plugins.aggregated_attention_setups import AggregatedAttentionSetup
from tests.plugins.attention_setups import AttentionSetup
from tests.plugins.kernels import Kernels, assert_right

ROOM = "room"
NOBODY = 1  # a key/value head
TILES = AttentionSetup(
    seq_len=40, kv_len=512, kv_num_heads=3, group=2, head_dim=32, value_dim=32, rank=4, gates="all"
)
PIXELS = AggregatedAttentionSetup(
    num_heads=3, head_dim=1024, height=5, width=7, pooled=3, gates="all"
)
Setup = AttentionSetup | AggregatedAttentionSetup
ATTENTION = (TILES, replace(TILES, seq_len=1), replace(TILES, is_causal=True))
SETUPS: dict[str, tuple[Setup, ...]] = {
    "MoHAttention": ATTENTION,
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
        _run(kernels, case, lambda array, setup=setup: _copy_with_unreadable_head(array, setup))
    print("done")


def run_filled(library: str, instruction_set: str, *, everything: bool) -> None:
    """Run attention in a cache half of which is room for more keys; a step also by a mask."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    kernels = Kernels(Path(library), instruction_set)
    for setup in ATTENTION:
        filled = setup.kv_len if everything else setup.kv_len // 2
        forms = [(None, np.array([filled])), (np.arange(setup.kv_len) < filled,)]
        for form in forms if setup.seq_len == 1 else forms[:1]:
            inputs = (*setup.case().inputs(), *form)
            case = replace(setup.case(), build=lambda rng, inputs=inputs: inputs)
            _run(kernels, case, _copy_with_unreadable_room)
    print("done")


def _run(kernels: Kernels, case: Case, copy: Callable[[np.ndarray], np.ndarray]) -> None:
    arrays = named_inputs(case)
    arrays |= {
        name: copy(array)
        for name, array in arrays.items()
        if name in ("K", "V", "pooled_K", "pooled_V")
    }
    values = {name: to_ort(array) for name, array in arrays.items()}
    outputs = kernels.session(case_model(case)).run_with_ort_values(None, values)
    assert_right(case, [from_ort(output) for output in outputs])


def _close(gates: np.ndarray, setup: Setup) -> None:
    group = setup.group if isinstance(setup, AttentionSetup) else 1
    gates[..., NOBODY * group : (NOBODY + 1) * group] = 0.0


def _copy_with_unreadable_head(array: np.ndarray, setup: Setup) -> np.ndarray:
    """[1, H, T, D], or [1, N, H*D]: what a head has in one piece is a whole number of pages."""
    heads = array.shape[1] if array.ndim == 4 else setup.num_heads
    pieces = 1 if array.ndim == 4 else array.shape[1]
    size = array.nbytes // heads // pieces
    return _copy_unreadable_at(array, [(i * heads + NOBODY) * size for i in range(pieces)], size)


def _copy_with_unreadable_room(array: np.ndarray) -> np.ndarray:
    """[1, H, T, D]: the second half of the keys of each head."""
    half = array.nbytes // array.shape[1] // 2
    return _copy_unreadable_at(array, [(2 * i + 1) * half for i in range(array.shape[1])], half)


def _copy_unreadable_at(array: np.ndarray, offsets: Sequence[int], size: int) -> np.ndarray:
    memory = mmap.mmap(-1, array.nbytes)
    copy = np.frombuffer(memory, array.dtype).reshape(array.shape)
    copy[:] = array
    assert size % mmap.PAGESIZE == 0
    libc = ctypes.CDLL(None, use_errno=True)
    for offset in offsets:
        address = ctypes.c_void_p(copy.ctypes.data + offset)
        assert libc.mprotect(address, ctypes.c_size_t(size), 0) == 0
    return copy


if __name__ == "__main__":
    _library, _instruction_set, _what, *_all = sys.argv[1:]
    if _what == ROOM:
        run_filled(_library, _instruction_set, everything=_all == ["all"])
    else:
        main(_library, _instruction_set, _what, everybody=_all == ["all"])
