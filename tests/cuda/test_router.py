"""MoHRouter on a GPU, beyond the cases of the op: many heads, counts, and what it refuses. Run by
the emulator."""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import FLOAT_TYPES, Arrays
from tests.cuda import abi
from tests.cuda.kernels import KernelError, Kernels
from tests.cuda.libraries import Emulator
from tests.nightly import nightly, sampled


def _case(
    build: Callable[[np.random.Generator], Arrays], dtype: str = "float32", **attributes: int | str
) -> Case:
    usual = {"top_k": 1, "num_shared_heads": 0, "gate_mode": "weighted"}
    return Case("drawn", "MoHRouter", "drawn", usual | attributes, build, dtype)


def _of_heads(routed: int, shared: int, tokens: int) -> Callable[[np.random.Generator], Arrays]:
    def build(rng: np.random.Generator) -> Arrays:
        sizes = (routed, shared, 2)
        return tuple(rng.standard_normal((1, tokens, size)).astype(np.float32) for size in sizes)

    return build


@sampled(4)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize(
    ("routed", "top_k", "shared"), [(33, 32, 1), (64, 16, 40), (1024, 300, 3), (5000, 5, 1)]
)
def test_many_heads(emulator: Emulator, routed: int, top_k: int, shared: int, dtype: str):
    case = _case(_of_heads(routed, shared, 3), dtype, top_k=top_k, num_shared_heads=shared)
    with emulator.configured(seed=3):
        assert Kernels(emulator.library).find_mismatch(case) is None


@nightly
def test_warps_take_several_tokens_of_many(emulator: Emulator):
    case = _case(_of_heads(4, 1, 20_000), top_k=2, num_shared_heads=1)
    assert Kernels(emulator.library).find_mismatch(case) is None


def test_probabilities_below_the_normal_numbers_are_no_ties(emulator: Emulator):
    """They are of the size 1e-39 to 1e-44, which is not 0 in float32."""
    logits = np.float32([[[0.0, -200.0, -95.0, -100.0, -300.0, -90.0]]])
    case = _case(lambda _: (logits, None, None), top_k=4, gate_mode="mask")
    assert Kernels(emulator.library).find_mismatch(case) is None


def test_head_counts_are_added(emulator: Emulator):
    logits = np.float32([[3, 2, 1], [1, 2, 3], [9, 0, 0]])
    gates, counts = np.empty((3, 4), np.float32), np.int32([100, 200, 300, 400])
    args = abi.RouterArgs(
        dtype=abi.DTYPES["float32"],
        routed_logits=logits.ctypes.data,
        gates=gates.ctypes.data,
        tokens=3,
        routed=3,
        shared=1,
        top_k=2,
    )
    status = emulator.library.moh_cuda_router(ctypes.byref(args), counts.ctypes.data, None)
    assert status == 0
    # Of the last token, heads 1 and 2 tie.
    assert counts.tolist() == [103, 202, 303, 401]


def test_more_heads_than_shared_memory_has_room_for_are_refused(emulator: Emulator):
    case = _case(_of_heads(20_000, 1, 1), num_shared_heads=1)
    text = "20000 routed and 1 shared heads need [0-9]+ bytes of shared memory; the limit"
    with pytest.raises(KernelError, match=f"kUnsupported: .*{text} is 101376"):
        Kernels(emulator.library).run(case)


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"dtype": 0}, "kUnsupported", "dtype 0"),
        ({"tokens": -1}, "kInvalidArgument", "-1 tokens"),
        ({"routed": 0, "shared": 0}, "kInvalidArgument", "0 routed and 0 shared heads"),
        ({"top_k": 0}, "kInvalidArgument", "top_k is 0; expected 1 to 6"),
        ({"top_k": 7}, "kInvalidArgument", "top_k is 7; expected 1 to 6"),
        ({"routed": 0}, "kInvalidArgument", "top_k is 3; expected 0 to 0"),
        ({"routed": 0, "top_k": 0}, "kInvalidArgument", "routed_logits without routed heads"),
        ({"routed_logits": None}, "kInvalidArgument", "routed_logits is null"),
        ({"gates": None}, "kInvalidArgument", "gates is null"),
        ({"shared": 0}, "kInvalidArgument", "shared_logits without shared heads"),
        ({"mask_only": True}, "kInvalidArgument", 'gate_mode "mask" with shared_logits'),
    ],
    ids=str,
)
def test_what_is_refused(
    emulator: Emulator, changes: dict[str, int | None], status: str, text: str
):
    # Addresses that nothing may follow.
    pointers = dict.fromkeys(("routed_logits", "shared_logits", "stage_logits", "gates"), 16)
    usual = {"dtype": 1, "tokens": 5, "routed": 6, "shared": 2, "top_k": 3, **pointers}
    args = abi.RouterArgs(**(usual | changes))
    got = emulator.library.moh_cuda_router(ctypes.byref(args), None, None)
    assert abi.STATUSES[got] == status
    assert text in emulator.library.moh_cuda_last_error().decode()


def test_no_token_needs_no_memory(emulator: Emulator):
    args = abi.RouterArgs(dtype=1, tokens=0, routed=6, shared=2, top_k=3)
    assert emulator.library.moh_cuda_router(ctypes.byref(args), None, None) == 0
