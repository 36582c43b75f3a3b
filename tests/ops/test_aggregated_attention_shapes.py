from __future__ import annotations

import pytest

from moh_deploy.errors import ExportError
from moh_deploy.ops import MOH_AGGREGATED_ATTENTION, TensorType
from moh_deploy.ops.spec import Attributes, OpDim, TensorTypes

ATTRIBUTES: Attributes = MOH_AGGREGATED_ATTENTION.complete(
    {"num_heads": 3, "height": 5, "width": 7, "kernel_height": 3, "kernel_width": 5}
)
INPUTS = {
    "Q": ("batch", 35, 12),
    "K": ("batch", 35, 12),
    "V": ("batch", 35, 12),
    "pooled_K": ("batch", 4, 12),
    "pooled_V": ("batch", 4, 12),
    "gates": ("batch", 35, 3),
    "query_embedding": (3, 4),
    "query_scale": (3, 35),
    "window_bias": (3, 15),
    "pooled_bias": (3, 35, 4),
    "window_tokens": (3, 4, 15),
    "window_offset": (3, 15),
}


def _float(*shape: OpDim) -> TensorType:
    return TensorType("float32", shape)


def _infer(change: dict[str, TensorType | None] | None = None, **attributes: float) -> TensorType:
    inputs: dict[str, TensorType | None] = {n: _float(*shape) for n, shape in INPUTS.items()}
    inputs |= change or {}
    types: TensorTypes = list(inputs.values())
    complete = MOH_AGGREGATED_ATTENTION.complete({**ATTRIBUTES, **attributes})
    return MOH_AGGREGATED_ATTENTION.shape_rule(types, complete)[0]


def _unknown(*but: str) -> dict[str, TensorType | None]:
    """Every input of sizes that are not known, but those."""
    return {n: _float(*[None] * len(s)) for n, s in INPUTS.items() if n not in but}


def test_output_is_as_the_queries():
    assert _infer() == _float("batch", 35, 12)


def test_optional_inputs_may_be_absent():
    optional = [given.name for given in MOH_AGGREGATED_ATTENTION.inputs if given.optional]
    assert len(optional) == 6
    for name in optional:
        assert _infer({name: None}) == _infer()
    assert _infer(dict.fromkeys(optional)) == _infer()


def test_trailing_absent_inputs_need_not_be_named():
    inputs = [_float(*INPUTS[name]) for name in list(INPUTS)[:6]]
    assert MOH_AGGREGATED_ATTENTION.shape_rule(inputs, ATTRIBUTES)[0] == _infer()


def test_number_of_tokens_comes_from_the_attributes():
    assert _infer(_unknown()) == _float(None, 35, None)


@pytest.mark.parametrize("name", ["K", "pooled_V"])
def test_hidden_size_comes_from_any_input_that_knows_it(name: str):
    assert _infer(_unknown(name)) == _float("batch", 35, 12)


@pytest.mark.parametrize("name", ["query_embedding", "window_tokens"])
def test_hidden_size_comes_from_the_head_size(name: str):
    assert _infer(_unknown(name)) == _float(None, 35, 12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_output_has_the_dtype_of_the_inputs(dtype: str):
    types = {name: TensorType(dtype, shape) for name, shape in INPUTS.items()}
    assert _infer(types).dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({name: None}, f"input '{name}' is absent; it is required") for name in ("Q", "gates")),
        ({"Q": TensorType("float64", (2, 35, 12))}, "Q has dtype float64; expected float32 or"),
        ({"K": TensorType("float16", (2, 35, 12))}, "K has dtype float16; expected float32"),
        (
            {"window_bias": TensorType("float16", (3, 15))},
            "window_bias has dtype float16; expected float32",
        ),
        ({"Q": _float(2, 3, 35, 4)}, r"Q has rank 4, shape \[2, 3, 35, 4\]; expected rank 3"),
        ({"pooled_bias": _float(35, 4)}, "pooled_bias has rank 2, .*; expected rank 3"),
        ({"Q": _float(2, 35, 13)}, "last size of Q, K and V is 13; expected a multiple of the 3"),
        ({"Q": _float(2, 36, 12)}, r"number of tokens \(height \* width\) of Q is 36; expected 35"),
        ({"K": _float(2, 4, 12)}, r"number of tokens .* of K is 4; expected 35"),
        ({"V": _float(2, 35, 15)}, "last size of V is 15; expected 12"),
        ({"K": _float(2, 35, 12), "V": _float(3, 35, 12)}, "batch size of V is 3; expected 2"),
        ({"pooled_V": _float(2, 5, 12)}, "number of pooled tokens of pooled_V is 5; expected 4"),
        ({"pooled_K": _float(2, 0, 12)}, "pooled_K has no tokens; expected at least 1"),
        ({"pooled_K": _float(2, 4, 15)}, "last size of pooled_K is 15; expected 12"),
        ({"gates": _float(2, 35, 2)}, "number of heads of gates is 2; expected 3"),
        ({"gates": _float(2, 3, 35)}, r"number of tokens .* of gates is 3; expected 35"),
        ({"query_embedding": _float(3, 5)}, "head size of query_embedding is 5; expected 4"),
        ({"query_scale": _float(35, 3)}, "number of heads of query_scale is 35; expected 3"),
        ({"query_scale": _float(3, 1)}, r"number of tokens .* of query_scale is 1; expected 35"),
        ({"window_bias": _float(3, 9)}, "number of window places of window_bias is 9; expected 15"),
        ({"pooled_bias": _float(3, 35, 5)}, "number of pooled tokens of pooled_bias is 5; exp"),
        ({"window_tokens": _float(3, 15, 4)}, "head size of window_tokens is 15; expected 4"),
        ({"window_offset": _float(1, 15)}, "number of heads of window_offset is 1; expected 3"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, TensorType | None], message: str):
    with pytest.raises(ExportError, match=f"MoHAggregatedAttention: {message}"):
        _infer(change)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0; expected at least 1"),
        ({"height": 0}, "height is 0; expected at least 1"),
        ({"width": -7}, "width is -7; expected at least 1"),
        ({"kernel_height": 4}, "kernel_height is 4; expected an odd number"),
        ({"kernel_width": -3}, "kernel_width is -3; expected at least 1"),
        ({"normalize": 2}, "normalize is 2; expected 0 or 1"),
        ({"epsilon": 0.0}, "epsilon is 0.0; expected more than 0"),
        ({"epsilon": float("nan")}, "epsilon is nan; expected more than 0"),
        ({"height": 7, "width": 7}, r"number of tokens .* of Q is 35; expected 49"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(attributes: dict[str, float], message: str):
    with pytest.raises(ExportError, match=f"MoHAggregatedAttention: {message}"):
        _infer(**attributes)
