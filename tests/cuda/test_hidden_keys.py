"""Keys that no row of a block sees are not computed, whoever hides them."""

import ctypes
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import Arrays
from tests.cuda import abi
from tests.cuda.kernels import Kernels, Plan
from tests.cuda.libraries import Emulator
from tests.cuda.makespan import CARDS, SHAPES, Card
from tests.plugins.attention_setups import AttentionSetup

TOKENS = 256
PLAIN = AttentionSetup(
    seq_len=TOKENS, kv_len=TOKENS, kv_num_heads=1, group=2, gates="all", dtype="float16"
)
CAUSAL = replace(PLAIN, is_causal=True)
_POSITION = np.arange(TOKENS)
_IS_PAST = np.tri(TOKENS, dtype=bool)
_PADDING = (_POSITION >= 64)[None, None, None]


def _with(setup: AttentionSetup, mask: np.ndarray | None, ranges: np.ndarray | None) -> Case:
    case = setup.case()

    def build(rng: np.random.Generator) -> Arrays:
        return (*case.build(rng), mask, None, ranges)

    return replace(case, build=build)


def _ranges(first: np.ndarray, end: np.ndarray) -> np.ndarray:
    return np.stack(np.broadcast_arrays(first, end), axis=-1)[None].astype(np.int64)


def _products(emulator: Emulator, case: Case, plan: Plan) -> int:
    with emulator.configured():
        assert Kernels(emulator.library).find_mismatch(case, plan) is None
        return emulator.counts().matrix_products


ALL_PAST = _ranges(_POSITION * 0, _POSITION + 1)
FORMS = {
    "ranges": (_with(PLAIN, None, ALL_PAST), 1.0),
    "bool mask": (_with(PLAIN, _IS_PAST, None), 1.0),
    "float mask": (_with(PLAIN, np.where(_IS_PAST, 0.0, -np.inf), None), 1.0),
    "padding": (_with(CAUSAL, np.ones((1, 1, 1, TOKENS), bool), None), 1.0),
    # 64 of 256 tokens less: (3 / 4)^2, and the first tiles of the rows that see.
    "padding on the left": (_with(CAUSAL, _PADDING, None), 0.65),
    "padding on the left, added": (_with(CAUSAL, np.where(_PADDING, 0.0, -np.inf), None), 0.65),
    "window": (_with(CAUSAL, None, _ranges(_POSITION - 15, _POSITION + 99)), 0.5),
    "documents": (_with(CAUSAL, None, _ranges(_POSITION // 64 * 64, _POSITION + 1)), 0.5),
    "nothing seen": (_with(PLAIN, np.zeros((TOKENS, TOKENS), bool), None), 0.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_hidden_tiles_are_not_computed(emulator: Emulator, form: str):
    case, share = FORMS[form]
    plan = Plan("dense", 1)
    causal = _products(emulator, CAUSAL.case(), plan)
    assert _products(emulator, case, plan) <= share * causal


def _estimate(emulator: Emulator, args: abi.AttentionArgs, device: abi.Device) -> float:
    choice, microseconds = abi.AttentionChoice(), ctypes.c_double()
    library, by_reference = emulator.library, ctypes.byref
    sized = (by_reference(args), by_reference(device), abi.USUAL_OPEN_SHARE, by_reference(choice))
    assert library.moh_cuda_attention_choose(*sized) == 0
    assert library.moh_cuda_attention_estimate(*sized, by_reference(microseconds)) == 0
    return microseconds.value


def _of_padding(args: abi.AttentionArgs) -> None:
    args.mask = abi.AttentionMask(4096, abi.DTYPES["bool"], args.keys, 0, 0, 1)


def _of_ranges(args: abi.AttentionArgs) -> None:
    args.causal, args.key_ranges = False, 4096


def _of_queries(args: abi.AttentionArgs) -> None:
    args.causal = False
    args.mask = abi.AttentionMask(4096, abi.DTYPES["float32"], 0, 0, args.keys, 1)


@pytest.mark.parametrize(
    ("hide", "most"), [(_of_padding, 1.05), (_of_ranges, 1.0), (_of_queries, 1.8)]
)
@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_the_model_prices_what_is_hidden(
    emulator: Emulator, card: Card, hide: Callable[[abi.AttentionArgs], None], most: float
):
    """LLaMA-2k, beside the causal form."""
    args = SHAPES[-1].args()
    causal = _estimate(emulator, args, card.device())
    hide(args)
    assert _estimate(emulator, args, card.device()) <= most * causal
