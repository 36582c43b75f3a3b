"""Invariants of MoHAggregatedAttention, on the function body as ONNX Runtime runs it."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.ops import MOH_AGGREGATED_ATTENTION, MOH_ATTENTION
from moh_deploy.ops.aggregated_attention_function import (
    AggregatedAttentionVariant,
    function_body,
    variant_of,
)
from moh_deploy.ops.aggregated_attention_shapes import OPTIONAL
from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.ops.spec import Attributes, TensorType
from tests.nightly import nightly

VARIANTS = [
    AggregatedAttentionVariant(kernel, normalize, optional)
    for kernel in ((1, 1), (3, 3), (5, 3))
    for normalize in (False, True)
    for optional in ((), *((name,) for name in OPTIONAL), OPTIONAL)
]
Sizes = tuple[int, int, int, int, int]
sizes = st.tuples(*(st.integers(1, most) for most in (3, 4, 3, 3, 4)))
kernels = st.sampled_from([(1, 1), (3, 3), (1, 5), (5, 3)])
seeds = st.integers(0, 2**32 - 1)
Arrays = dict[str, np.ndarray]


@cache
def _session(image: tuple[int, int], kernel: tuple[int, int], heads: int) -> ort.InferenceSession:
    """Every input; every size that the attributes do not fix is dynamic."""
    tokens, places = image[0] * image[1], kernel[0] * kernel[1]
    shapes = (
        *[("batch", tokens, "hidden")] * 3,
        *[("batch", "pooled", "hidden")] * 2,
        ("batch", tokens, heads),
        (heads, "head_dim"),
        (heads, tokens),
        (heads, places),
        (heads, tokens, "pooled"),
        (heads, "head_dim", places),
        (heads, places),
    )
    inputs = [TensorType("float32", shape) for shape in shapes]
    model = single_node_model("MoHAggregatedAttention", inputs, _attributes(image, kernel, heads))
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _attributes(image: tuple[int, int], kernel: tuple[int, int], heads: int) -> Attributes:
    sides = {"height": image[0], "width": image[1]}
    window = {"kernel_height": kernel[0], "kernel_width": kernel[1]}
    return {"num_heads": heads, **sides, **window, "normalize": 1}


def _random(sizes: Sizes, kernel: tuple[int, int], seed: int) -> Arrays:
    """Vectors are [B, N or P, H, D] here."""
    height, width, heads, head_dim, pooled = sizes
    tokens, places = height * width, kernel[0] * kernel[1]
    shapes = dict.fromkeys(("Q", "K", "V"), (2, tokens, heads, head_dim))
    shapes |= dict.fromkeys(("pooled_K", "pooled_V"), (2, pooled, heads, head_dim))
    shapes |= {
        "gates": (2, tokens, heads),
        "query_embedding": (heads, head_dim),
        "query_scale": (heads, tokens),
        "window_bias": (heads, places),
        "pooled_bias": (heads, tokens, pooled),
        "window_tokens": (heads, head_dim, places),
        "window_offset": (heads, places),
    }
    rng = np.random.default_rng(seed)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["gates"] *= rng.random(shapes["gates"]) < 0.6
    return arrays


def _run(arrays: Arrays, image: tuple[int, int], kernel: tuple[int, int]) -> np.ndarray:
    """Return [B, N, H, D]."""
    session = _session(image, kernel, arrays["Q"].shape[2])
    merged = {name: a.reshape(*a.shape[:2], -1) for name, a in arrays.items() if a.ndim == 4}
    return session.run(None, arrays | merged)[0].reshape(arrays["Q"].shape)


@given(sizes, kernels, seeds)
def test_permuting_heads_permutes_the_output(sizes: Sizes, kernel: tuple[int, int], seed: int):
    arrays = _random(sizes, kernel, seed)
    order = np.random.default_rng(seed).permutation(sizes[2])
    permuted = {
        name: array[order] if name in OPTIONAL else array[:, :, order]
        for name, array in arrays.items()
    }
    got, plain = _run(permuted, sizes[:2], kernel), _run(arrays, sizes[:2], kernel)
    np.testing.assert_allclose(got, plain[:, :, order], rtol=1e-4, atol=1e-5)


@nightly
@given(sizes, kernels, seeds)
def test_turning_the_image_turns_the_output(sizes: Sizes, kernel: tuple[int, int], seed: int):
    """By half a turn: tokens and places are both read backwards."""
    arrays = _random(sizes, kernel, seed)
    turned = dict(arrays)
    for name in ("Q", "K", "V", "gates", "pooled_bias", "query_scale"):
        turned[name] = np.ascontiguousarray(arrays[name][:, ::-1])
    for name in ("window_bias", "window_tokens", "window_offset"):
        turned[name] = np.ascontiguousarray(arrays[name][..., ::-1])
    got, plain = _run(turned, sizes[:2], kernel), _run(arrays, sizes[:2], kernel)
    np.testing.assert_allclose(got, plain[:, ::-1], rtol=1e-4, atol=1e-5)


@given(sizes, kernels, seeds, st.sampled_from([np.nan, np.inf, -np.inf]))
def test_closed_gates_give_exact_zeros_whatever_is_behind_them(
    sizes: Sizes, kernel: tuple[int, int], seed: int, special: float
):
    arrays = _random(sizes, kernel, seed)
    clean = _run(arrays, sizes[:2], kernel)
    closed = arrays["gates"] == 0
    arrays["Q"][closed] = special
    output = _run(arrays, sizes[:2], kernel)
    assert np.all(output[closed] == 0)
    np.testing.assert_array_equal(output[~closed], clean[~closed])


@given(sizes, kernels, seeds)
def test_output_is_linear_in_the_gates(sizes: Sizes, kernel: tuple[int, int], seed: int):
    arrays = _random(sizes, kernel, seed)
    doubled = arrays | {"gates": 2 * arrays["gates"]}
    output = _run(arrays, sizes[:2], kernel)
    np.testing.assert_array_equal(_run(doubled, sizes[:2], kernel), 2 * output)


@pytest.mark.parametrize("batch", [1, 5])
def test_one_model_serves_every_batch_size(batch: int):
    arrays = _random((3, 4, 2, 3, 4), (3, 3), 0)
    repeated = {n: a if n in OPTIONAL else np.repeat(a[:1], batch, 0) for n, a in arrays.items()}
    output = _run(repeated, (3, 4), (3, 3))
    one = _run(arrays, (3, 4), (3, 3))[:1]
    np.testing.assert_allclose(output, np.repeat(one, batch, 0), rtol=1e-5, atol=1e-6)


def test_window_of_the_whole_image_is_attention_to_image_and_pool():
    """The two references agree where the ops mean the same."""
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 2, 12, 6))
    pooled_key, pooled_value = rng.standard_normal((2, 2, 5, 6))
    gates = np.where(rng.random((2, 12, 2)) < 0.6, rng.random((2, 12, 2)), 0.0)
    attributes = _attributes((3, 4), (5, 7), 2) | {"normalize": 0, "epsilon": 1e-12}
    (got,) = MOH_AGGREGATED_ATTENTION.reference(
        (query, key, value, pooled_key, pooled_value, gates), attributes
    )
    keys, values = (np.concatenate(p, 1) for p in ((key, pooled_key), (value, pooled_value)))
    (expected,) = MOH_ATTENTION.reference(
        (query, keys, values, gates),
        {"q_num_heads": 2, "kv_num_heads": 2, "scale": 1.0, "is_causal": 0},
    )
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_absent_inputs_in_between_are_parameters_and_those_at_the_end_are_not():
    inputs = [TensorType("float32", shape) for shape in [(2, 35, 6)] * 5 + [(2, 35, 2), (2, 35)]]
    types = [*inputs[:6], None, inputs[6], None]
    variant = variant_of(types, _attributes((5, 7), (3, 3), 2))
    assert variant == AggregatedAttentionVariant((3, 3), True, ("query_scale",))
    assert variant.parameters()[6:] == ("query_embedding", "query_scale")


@pytest.mark.parametrize("variant", VARIANTS, ids=AggregatedAttentionVariant.key)
def test_the_window_is_never_unfolded(variant: AggregatedAttentionVariant):
    ops = [node.op_type for node in function_body(variant, opset=18).node]
    assert "Gather" not in " ".join(ops)
    assert ops.count("Pad") == 3  # keys, values, and which places are inside
    assert ("ReduceL2" in ops) == variant.normalize


@pytest.mark.parametrize("variant", VARIANTS, ids=AggregatedAttentionVariant.key)
def test_attributes_are_references_never_numbers(variant: AggregatedAttentionVariant):
    """But the window's size: the body holds one step for each of its places."""
    function = function_body(variant, opset=18)
    referenced = {a.ref_attr_name for node in function.node for a in node.attribute}
    assert {"num_heads", "height", "width"} <= referenced
    assert ("epsilon" in referenced) == variant.normalize
    assert list(function.attribute) == [a.name for a in MOH_AGGREGATED_ATTENTION.attributes]
