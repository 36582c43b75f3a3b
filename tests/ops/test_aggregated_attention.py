"""The function bodies of MoHAggregatedAttention, and a window of the whole image."""

import numpy as np
import pytest

from moh_deploy.ops import MOH_AGGREGATED_ATTENTION, MOH_ATTENTION
from moh_deploy.ops.aggregated_attention_function import (
    AggregatedAttentionVariant,
    function_body,
    variant_of,
)
from moh_deploy.ops.aggregated_attention_shapes import OPTIONAL
from moh_deploy.ops.spec import Attributes, TensorType

VARIANTS = [
    AggregatedAttentionVariant(kernel, normalize, optional)
    for kernel in ((1, 1), (3, 3), (5, 3))
    for normalize in (False, True)
    for optional in ((), *((name,) for name in OPTIONAL), OPTIONAL)
]


def _attributes(image: tuple[int, int], kernel: tuple[int, int], heads: int) -> Attributes:
    sides = {"height": image[0], "width": image[1]}
    window = {"kernel_height": kernel[0], "kernel_width": kernel[1]}
    return {"num_heads": heads, **sides, **window, "normalize": 1}


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
