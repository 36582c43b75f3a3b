"""The torch operators against the reference, on every case of the contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.torch_ops import OPERATORS, bodies, run_reference
from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case, find_mismatch
from tests.nightly import nightly_if, sampled
from tests.ops.batches import BATCHES, Batch, assert_nothing_wrong, assert_outputs_right
from tests.ops.cases import OP_CASES

IN_TURN = [
    pytest.param(batch, marks=nightly_if(number // 3 % 3 != number % 3))
    for number, batch in enumerate(BATCHES)
]
"""A push runs each op in one dtype."""


def arguments(case: Case) -> list[object]:
    """All arguments of the torch operator: its inputs, then its attributes."""
    spec = OPS[case.op]
    inputs = list(map(tensor, case.inputs()))
    attributes = spec.complete(case.attributes)
    typed = [bool(attributes[a.name]) if a.is_flag else attributes[a.name] for a in spec.attributes]
    return [*inputs, *[None] * (len(spec.inputs) - len(inputs)), *typed]


def tensor(array: np.ndarray | None) -> Tensor | None:
    if array is None:
        return None
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def run(case: Case) -> np.ndarray:
    return to_numpy(OPERATORS[case.op](*arguments(case)))


@pytest.mark.parametrize("batch", IN_TURN, ids=str)
def test_operator_agrees_with_the_reference(batch: Batch):
    assert_outputs_right(batch.cases, lambda case: [run(case)])


def fake_that_differs(case: Case) -> str | None:
    real = OPERATORS[case.op](*arguments(case))
    mode = FakeTensorMode()
    fakes = [mode.from_tensor(x) if torch.is_tensor(x) else x for x in arguments(case)]
    fake = OPERATORS[case.op](*fakes)
    if (fake.shape, fake.dtype) == (real.shape, real.dtype):
        return None
    return f"{fake.dtype}{fake.shape}; expected {real.dtype}{real.shape}"


@pytest.mark.parametrize("batch", IN_TURN, ids=str)
def test_fake_output_has_shape_and_dtype_of_the_real_one(batch: Batch):
    assert_nothing_wrong(batch.cases, fake_that_differs)


@sampled(3)
@pytest.mark.parametrize("op", OPS)
def test_an_op_without_a_body_in_torch_is_computed_by_its_reference(op: str):
    def run(case: Case) -> list[np.ndarray]:
        return [to_numpy(run_reference(OPS[op], *arguments(case)))]

    assert_outputs_right(OP_CASES[op][::5], run)


def test_signatures_are_those_of_the_specs():
    assert {name: str(operator._schema) for name, operator in OPERATORS.items()} == {
        "MoHAggregatedAttention": "moh::aggregated_attention(Tensor Q, Tensor K, Tensor V, "
        "Tensor pooled_K, Tensor pooled_V, Tensor gates, Tensor? query_embedding, "
        "Tensor? query_scale, Tensor? window_bias, Tensor? pooled_bias, Tensor? window_tokens, "
        "Tensor? window_offset, int num_heads, int height, int width, int kernel_height, "
        "int kernel_width, bool normalize, float epsilon) -> Tensor",
        "MoHAttention": "moh::attention(Tensor Q, Tensor K, Tensor V, Tensor gates, "
        "Tensor? attn_mask, Tensor? nonpad_kv_seqlen, Tensor? key_ranges, int q_num_heads, "
        "int kv_num_heads, float scale, bool is_causal) -> Tensor",
        "MoHMatMulNBits": "moh::mat_mul_n_bits(Tensor X, Tensor W, Tensor scales, "
        "int in_features, int out_features, int bits) -> Tensor",
        "MoHOutputProjection": "moh::output_projection(Tensor X, Tensor W, Tensor gates, "
        "Tensor? bias, int num_heads) -> Tensor",
        "MoHQueryProjection": "moh::query_projection(Tensor X, Tensor W, Tensor gates, "
        "Tensor? bias, int num_heads) -> Tensor",
        **{
            f"MoH{name}ProjectionNBits": f"moh::{name.lower()}_projection_n_bits(Tensor X, "
            "Tensor W, Tensor gates, Tensor scales, Tensor? bias, int num_heads, "
            "int in_features, int out_features) -> Tensor"
            for name in ("Output", "Query")
        },
        "MoHRouter": "moh::router(Tensor? routed_logits, Tensor? shared_logits, "
        "Tensor? stage_logits, int top_k, int num_shared_heads, str gate_mode) -> Tensor",
        "MoHTokenConv": "moh::token_conv(Tensor X, Tensor W, Tensor? bias, Tensor? input_bias, "
        "int channels, int height, int width, str activation, bool gated) -> Tensor",
    }


def test_sizes_of_a_fake_output_stay_symbolic():
    batch = torch.export.Dim("batch", min=2, max=64)

    class Gated(torch.nn.Module):
        def forward(self, x: Tensor, gates: Tensor) -> Tensor:
            return torch.ops.moh.attention(x, x, x, gates, None, None, None, 2, 2, 1.0, False)

    inputs = (torch.ones(3, 5, 8), torch.ones(3, 5, 2))
    program = torch.export.export(Gated(), inputs, dynamic_shapes=({0: batch}, {0: batch}))
    (node,) = program.graph.find_nodes(op="call_function", target=OPERATORS["MoHAttention"])
    batch_size, *others = node.meta["val"].shape
    assert not isinstance(batch_size, int)
    assert others == [5, 8]


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
    return (tokens >= 0) & (tokens < height * width)


def _sides_swapped(x, height, width, kernel_height, kernel_width):
    return _windows(x, width, height, kernel_height, kernel_width)


def _kernel_swapped(x, height, width, kernel_height, kernel_width):
    return _windows(x, height, width, kernel_width, kernel_height)


_routed = bodies._routed_gates
_windows = bodies._windows
_linear = bodies._linear


@sampled(4)
@pytest.mark.parametrize(
    ("op", "name", "bug"),
    [
        ("MoHAggregatedAttention", "_inside", _running_on),
        ("MoHAggregatedAttention", "_windows", _sides_swapped),
        ("MoHAggregatedAttention", "_windows", _kernel_swapped),
        ("MoHAttention", "_masked_softmax", _softmax_without_mask),
        ("MoHQueryProjection", "_linear", _transposed_weight),
        ("MoHOutputProjection", "_linear", _bias_for_each_row),
        ("MoHRouter", "_routed_gates", _mask_only),
        ("MoHRouter", "_routed_gates", _last_head_first),
        ("MoHTokenConv", "functional", _TanhGelu),
    ],
)
def test_planted_bug_is_noticed(monkeypatch: pytest.MonkeyPatch, op: str, name: str, bug):
    monkeypatch.setattr(bodies, name, bug)
    cases = [case for case in OP_CASES[op] if case.dtype == "float32"]
    assert any(find_mismatch(case, [run(case)]) for case in cases)


def test_float64_is_computed_in_float64():
    """The proof of a router compares at 1e-9, which float32 could not."""
    logits = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = torch.ops.moh.router.default(logits, None, None, 4, 0, "weighted")
    torch.testing.assert_close(got, logits.softmax(-1) * 4, rtol=0, atol=1e-12)
