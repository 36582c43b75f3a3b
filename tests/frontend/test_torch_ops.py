"""The torch operators against the reference, on every case of the contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.torch_ops import (
    aggregated_attention,
    attention,
    projection,
    router,
    token_conv,
)
from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.contract import find_mismatch

CASES = [case for spec in OPS.values() for case in spec.cases]
OPERATORS = {
    "MoHAggregatedAttention": torch.ops.moh.aggregated_attention,
    "MoHAttention": torch.ops.moh.attention,
    "MoHOutputProjection": torch.ops.moh.output_projection,
    "MoHQueryProjection": torch.ops.moh.query_projection,
    "MoHRouter": torch.ops.moh.router,
    "MoHTokenConv": torch.ops.moh.token_conv,
}


def arguments(case: Case) -> list[object]:
    """All arguments of the torch operator: its inputs, then its attributes, in schema order."""
    names = [given.name for given in OPS[case.op].inputs]
    inputs = dict(zip(names, map(tensor, case.inputs()), strict=False))
    attributes = OPS[case.op].complete(case.attributes)
    schema = OPERATORS[case.op].default._schema.arguments
    values = [*inputs.values(), *([None] * (len(names) - len(inputs)))]
    rest = schema[len(names) :]
    return [*values, *(typed(attributes[formal.name], str(formal.type)) for formal in rest)]


def tensor(array: np.ndarray | None) -> Tensor | None:
    if array is None:
        return None
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def typed(value: object, kind: str) -> object:
    return bool(value) if kind == "bool" else value


def run(case: Case) -> np.ndarray:
    return to_numpy(OPERATORS[case.op].default(*arguments(case)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_operator_agrees_with_the_reference(case: Case):
    assert find_mismatch(case, [run(case)]) is None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fake_output_has_shape_and_dtype_of_the_real_one(case: Case):
    real = OPERATORS[case.op].default(*arguments(case))
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(x) if torch.is_tensor(x) else x for x in arguments(case)]
    fake = OPERATORS[case.op].default(*fakes)
    assert (fake.shape, fake.dtype) == (real.shape, real.dtype)


def test_every_operator_of_the_contract_is_a_torch_operator():
    assert OPERATORS.keys() == OPS.keys()


# The contract must be able to tell a wrong operator.


def _softmax_without_mask(scores, attn_mask, is_causal):
    return scores.softmax(dim=-1)


def _mask_only(scores, top_k, gate_mode):
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return torch.zeros_like(scores).scatter(-1, order[..., :top_k], 1.0)


def _last_head_first(scores, top_k, gate_mode):
    flipped = _routed(scores.flip(-1), top_k, gate_mode)
    return flipped.flip(-1)


def _transposed_weight(x, weight, bias):
    return _linear(x, weight.flatten().reshape(weight.shape[::-1]).T, bias)


def _bias_for_each_row(x, weight, bias):
    return _linear(x, weight, None if bias is None else bias * x.shape[-1])


class _TanhGelu:
    """In place of `torch.nn.functional`."""

    conv2d = staticmethod(torch.nn.functional.conv2d)

    @staticmethod
    def gelu(x):
        return torch.nn.functional.gelu(x, approximate="tanh")


def _running_on(height, width, kernel_height, kernel_width):
    """Beyond the end of a row the window runs on into the next one."""
    offsets = torch.arange(kernel_height)[:, None] - kernel_height // 2
    offsets = offsets * width + torch.arange(kernel_width) - kernel_width // 2
    tokens = torch.arange(height * width)[:, None] + offsets.flatten()
    inside = (tokens >= 0) & (tokens < height * width)
    return tokens.where(inside, 0), inside


def _sides_swapped(height, width, kernel_height, kernel_width):
    return _window(width, height, kernel_height, kernel_width)


def _kernel_swapped(height, width, kernel_height, kernel_width):
    return _window(height, width, kernel_width, kernel_height)


_routed = router._routed_gates
_window = aggregated_attention._neighbours
_linear = projection._linear


@pytest.mark.parametrize(
    ("op", "module", "name", "bug"),
    [
        ("MoHAggregatedAttention", aggregated_attention, "_neighbours", _running_on),
        ("MoHAggregatedAttention", aggregated_attention, "_neighbours", _sides_swapped),
        ("MoHAggregatedAttention", aggregated_attention, "_neighbours", _kernel_swapped),
        ("MoHAttention", attention, "_masked_softmax", _softmax_without_mask),
        ("MoHQueryProjection", projection, "_linear", _transposed_weight),
        ("MoHOutputProjection", projection, "_linear", _bias_for_each_row),
        ("MoHRouter", router, "_routed_gates", _mask_only),
        ("MoHRouter", router, "_routed_gates", _last_head_first),
        ("MoHTokenConv", token_conv, "functional", _TanhGelu),
    ],
)
def test_planted_bug_is_noticed(monkeypatch: pytest.MonkeyPatch, op: str, module, name: str, bug):
    monkeypatch.setattr(module, name, bug)
    cases = [case for case in OPS[op].cases if case.dtype == "float32"]
    assert any(find_mismatch(case, [run(case)]) for case in cases)


def test_float64_is_computed_in_float64():
    """The proof of a router compares at 1e-9, which float32 could not."""
    logits = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = torch.ops.moh.router.default(logits, None, None, 4, 0, "weighted")
    torch.testing.assert_close(got, logits.softmax(-1) * 4, rtol=0, atol=1e-12)
