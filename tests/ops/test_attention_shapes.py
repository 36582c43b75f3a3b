from __future__ import annotations

import pytest

from moh_deploy.errors import ExportError
from moh_deploy.ops import MOH_ATTENTION, TensorType
from moh_deploy.ops.spec import OpDim

ATTRIBUTES = {"q_num_heads": 6, "kv_num_heads": 2, "scale": 0.5, "is_causal": 0}


def _float(*shape: OpDim) -> TensorType:
    return TensorType("float32", shape)


def _infer(change: dict[str, TensorType | None] | None = None, **attributes: int) -> TensorType:
    inputs: dict[str, TensorType | None] = {
        "Q": _float("batch", "seq", 6 * 4),
        "K": _float("batch", "past+seq", 2 * 4),
        "V": _float("batch", "past+seq", 2 * 3),
        "gates": _float("batch", "seq", 6),
        "attn_mask": None,
        "nonpad_kv_seqlen": None,
    } | (change or {})
    complete = MOH_ATTENTION.complete({**ATTRIBUTES, **attributes})
    return MOH_ATTENTION.shape_rule(list(inputs.values()), complete)[0]


BY_HEADS = {
    "Q": _float(2, 6, 5, 4),
    "K": _float(2, 2, 9, 4),
    "V": _float(2, 2, 9, 3),
    "gates": _float(2, 5, 6),
}


def test_merged_heads_keep_their_rank_and_names():
    assert _infer() == _float("batch", "seq", 6 * 3)


def test_separate_heads_keep_their_rank():
    assert _infer(BY_HEADS) == _float(2, 6, 5, 3)


def test_unknown_sizes_are_taken_from_where_they_are_known():
    change = {"Q": _float(None, None, None), "V": _float(None, None, None)}
    assert _infer(change) == _float("batch", "seq", None)
    assert _infer({"Q": _float(None, "s", 24), "gates": _float(None, 7, 6)}) == _float(
        "batch", 7, 18
    )


def test_output_has_the_dtype_of_the_queries():
    types = {n: TensorType("bfloat16", t.shape) for n, t in BY_HEADS.items()}
    assert _infer(types).dtype == "bfloat16"


@pytest.mark.parametrize(
    "mask",
    [
        TensorType("bool", ("past+seq",)),
        TensorType("bool", ("seq", "past+seq")),
        TensorType("float16", (6, 1, "past+seq")),
        _float(1, 6, 1, 1),
    ],
)
def test_broadcastable_masks_are_accepted(mask: TensorType):
    assert _infer({"attn_mask": mask}) == _infer()


@pytest.mark.parametrize("batch", [2, "batch", None])
def test_lengths_of_sequences_are_accepted(batch: OpDim):
    lengths = {"nonpad_kv_seqlen": TensorType("int64", (batch,))}
    assert _infer(BY_HEADS | lengths) == _infer(BY_HEADS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Q": None}, "input 'Q' is absent"),
        ({"gates": None}, "input 'gates' is absent"),
        ({"Q": TensorType("int64", (2, 5, 24))}, "Q has dtype int64; expected float32 or"),
        ({"K": TensorType("float16", (2, 9, 8))}, "K has dtype float16; expected float32"),
        ({"gates": TensorType("bool", (2, 5, 6))}, "gates has dtype bool; expected float32"),
        ({"Q": _float(5, 24)}, r"Q has rank 2, shape \[5, 24\]; expected rank 3 or 4"),
        ({"K": _float(2, 2, 9, 4)}, "K has rank 4, .*; expected rank 3"),
        ({"gates": _float(2, 5)}, "gates has rank 2"),
        ({"Q": _float(2, 5, 25)}, "last size of Q is 25; expected a multiple of its 6 heads"),
        ({"K": _float(2, 9, 10)}, "head size of K is 5; expected 4"),
        ({"Q": _float(2, 5, 24), "K": _float(3, 9, 8)}, "batch size of K is 3; expected 2"),
        ({"K": _float(2, 9, 8), "V": _float(2, 8, 6)}, "length of V is 8; expected 9"),
        ({"gates": _float(2, 5, 2)}, "number of heads in gates is 2; expected 6"),
        ({"Q": _float(2, 5, 24), "gates": _float(2, 4, 6)}, "length of gates is 4; expected 5"),
        (BY_HEADS | {"K": _float(2, 6, 9, 4)}, "number of heads in K is 6; expected 2"),
        (BY_HEADS | {"attn_mask": TensorType("int32", (5, 9))}, "attn_mask has dtype int32"),
        (BY_HEADS | {"attn_mask": _float()}, "attn_mask has rank 0"),
        (
            BY_HEADS | {"attn_mask": _float(2, 5, 9)},
            r"attn_mask of shape \[2, 5, 9\] does not broadcast to the scores \[2, 6, 5, 9\]",
        ),
        (
            BY_HEADS | {"nonpad_kv_seqlen": TensorType("int32", (2,))},
            "nonpad_kv_seqlen has dtype int32; expected int64",
        ),
        (
            BY_HEADS | {"nonpad_kv_seqlen": TensorType("int64", (2, 1))},
            r"nonpad_kv_seqlen has rank 2, shape \[2, 1\]; expected rank 1",
        ),
        (
            BY_HEADS | {"nonpad_kv_seqlen": TensorType("int64", (3,))},
            "batch size of nonpad_kv_seqlen is 3; expected 2",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, TensorType | None], message: str):
    with pytest.raises(ExportError, match=message):
        _infer(change)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"kv_num_heads": 4}, "q_num_heads is 6; expected a multiple of kv_num_heads, 4"),
        ({"kv_num_heads": 0}, "kv_num_heads is 0; expected at least 1"),
        ({"is_causal": 2}, "is_causal is 2; expected 0 or 1"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(attributes: dict[str, int], message: str):
    with pytest.raises(ExportError, match=message):
        _infer(**attributes)
