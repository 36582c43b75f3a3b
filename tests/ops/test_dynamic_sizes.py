"""One function body serves all sizes: what no attribute fixes is told by each run."""

from collections.abc import Mapping
from functools import cache

import numpy as np
import onnxruntime as ort
import pytest

from moh_deploy.ops import OPS
from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.ops.spec import Attributes, TensorType

Shape = tuple[int | str, ...]

# Each op with the attributes of a node, and the shapes of its inputs, in which names are dynamic.
NODES: dict[str, tuple[Attributes, Mapping[str, Shape]]] = {
    "MoHAttention": (
        {"q_num_heads": 4, "kv_num_heads": 2, "scale": 0.5, "is_causal": 1},
        {
            "Q": ("batch", 4, "seq", "dim"),
            "K": ("batch", 2, "kv", "dim"),
            "V": ("batch", 2, "kv", "value_dim"),
            "gates": ("batch", "seq", 4),
        },
    ),
    "MoHAggregatedAttention": (
        {
            "num_heads": 2,
            "height": 3,
            "width": 4,
            "normalize": 1,
            "kernel_height": 3,
            "kernel_width": 5,
        },
        {
            **dict.fromkeys(("Q", "K", "V"), ("batch", 12, 6)),
            **dict.fromkeys(("pooled_K", "pooled_V"), ("batch", "pooled", 6)),
            "gates": ("batch", 12, 2),
            "query_embedding": (2, 3),
            "query_scale": (2, 12),
            "window_bias": (2, 15),
            "pooled_bias": (2, 12, "pooled"),
            "window_tokens": (2, 3, 15),
            "window_offset": (2, 15),
        },
    ),
    "MoHRouter": (
        {"top_k": 3, "num_shared_heads": 2, "gate_mode": "weighted"},
        {
            "routed_logits": ("batch", "seq", 7),
            "shared_logits": ("batch", "seq", 2),
            "stage_logits": ("batch", "seq", 2),
        },
    ),
    "MoHTokenConv": (
        {"channels": 6, "height": 5, "width": 7, "gated": 1},
        {"X": ("batch", 35, 12), "W": (6, 1, 3, 5)},
    ),
}
SIZES = {"batch": (0, 3), "seq": (1, 6), "kv": (1, 9), "dim": (1, 5), "value_dim": (1, 5)}


@cache
def session(op: str) -> ort.InferenceSession:
    attributes, shapes = NODES[op]
    types = [TensorType("float32", shape) for shape in shapes.values()]
    model = single_node_model(op, types, attributes)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("op", NODES)
@pytest.mark.parametrize("seed", range(8))
def test_body_agrees_with_the_reference_at_any_size(op: str, seed: int):
    rng = np.random.default_rng(seed)
    sizes = {name: int(rng.integers(*SIZES.get(name, (1, 6)))) for name in (*SIZES, "pooled")}
    attributes, shapes = NODES[op]
    arrays = {
        name: rng.standard_normal([sizes.get(n, n) for n in shape]).astype(np.float32)
        for name, shape in shapes.items()
    }
    if "gates" in arrays:
        arrays["gates"] *= rng.random(arrays["gates"].shape) < 0.6
    (expected,) = OPS[op].reference(list(arrays.values()), OPS[op].complete(attributes))
    (output,) = session(op).run(None, arrays)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(output == 0, expected == 0)
