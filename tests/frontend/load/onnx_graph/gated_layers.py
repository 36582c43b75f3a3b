"""Files with one MoH layer, whose attention is written in many ways: the rest is the same."""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

HEADS, DIM, WIDTH = 4, 16, 64

ATTENTION: dict[str, tuple[int, str]] = {
    "Attention of opset 23": (
        23,
        "heads = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v)",
    ),
    "Attention of opset 24, causal": (
        24,
        "heads = Attention <q_num_heads = 4, kv_num_heads = 4, is_causal = 1> (q, k, v)",
    ),
    "MultiHeadAttention": (
        17,
        "heads = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v)",
    ),
    "GroupQueryAttention": (
        18,
        """heads, present_k, present_v = com.microsoft.GroupQueryAttention
            <num_heads = 4, kv_num_heads = 4> (q, k, v, , , lengths, total)""",
    ),
    "Attention with its projection": (
        20,
        "heads = com.microsoft.Attention <num_heads = 4> (x, w_qkv, b_qkv)",
    ),
    "MatMul, Softmax, MatMul, a mask by Where": (
        21,
        """split = Constant <value_ints = [0, 0, 4, 16]> ()
        q4 = Reshape (q, split)
        k4 = Reshape (k, split)
        v4 = Reshape (v, split)
        qh = Transpose <perm = [0, 2, 1, 3]> (q4)
        kt = Transpose <perm = [0, 2, 3, 1]> (k4)
        vh = Transpose <perm = [0, 2, 1, 3]> (v4)
        products = MatMul (qh, kt)
        scores = Mul (products, quarter)
        masked = Where (hidden, least, scores)
        probabilities = Softmax <axis = -1> (masked)
        attended = MatMul (probabilities, vh)
        merged = Transpose <perm = [0, 2, 1, 3]> (attended)
        flat = Constant <value_ints = [0, 0, 64]> ()
        heads = Reshape (merged, flat)""",
    ),
    "FusedMatMul and an added mask": (
        19,
        """split = Constant <value_ints = [0, 0, 4, 16]> ()
        q4 = Reshape (q, split)
        k4 = Reshape (k, split)
        v4 = Reshape (v, split)
        qh = Transpose <perm = [0, 2, 1, 3]> (q4)
        kh = Transpose <perm = [0, 2, 1, 3]> (k4)
        vh = Transpose <perm = [0, 2, 1, 3]> (v4)
        scores = com.microsoft.FusedMatMul <transB = 1, alpha = 0.25> (qh, kh)
        lifted = Add (scores, added)
        probabilities = Softmax <axis = -1> (lifted)
        attended = MatMul (probabilities, vh)
        merged = Transpose <perm = [0, 2, 1, 3]> (attended)
        flat = Constant <value_ints = [0, 0, 64]> ()
        heads = Reshape (merged, flat)""",
    ),
}


def write_layer(path: Path, attention: str) -> Path:
    """Write a file of one layer: 2 of 4 heads by a softmax, in the style of an exporter."""
    opset, text = ATTENTION[attention]
    domains = f'opset_import: ["" : {opset}, "com.microsoft" : 1]'
    model = parser.parse_model(
        f"""<ir_version: 10, {domains}>
        g (float[batch, 6, 64] x) => (float[batch, 6, 64] y) {{
            q = MatMul (x, w_q)
            k = MatMul (x, w_k)
            v = MatMul (x, w_v)
            {text}
            logits = MatMul (x, w_r)
            p = Softmax <axis = -1> (logits)
            two = Constant <value_ints = [2]> ()
            best, places = TopK <axis = -1> (p, two)
            of_p = Shape (p)
            nothing = ConstantOfShape (of_p)
            gates = ScatterElements <axis = -1> (nothing, places, best)
            split_heads = Constant <value_ints = [0, 0, 4, 16]> ()
            apart = Reshape (heads, split_heads)
            last = Constant <value_ints = [-1]> ()
            wide = Unsqueeze (gates, last)
            gated = Mul (apart, wide)
            whole = Constant <value_ints = [0, 0, 64]> ()
            joined = Reshape (gated, whole)
            y = MatMul (joined, w_o)
        }}"""
    )
    for name, array in _weights().items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def _weights() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return (generator.standard_normal(shape) / 8).astype(np.float32)

    above = np.triu(np.ones((6, 6), bool), 1)
    return {
        **{name: drawn(WIDTH, WIDTH) for name in ("w_q", "w_k", "w_v", "w_o")},
        "w_r": 8 * drawn(WIDTH, HEADS),
        "w_qkv": drawn(WIDTH, 3 * WIDTH),
        "b_qkv": drawn(3 * WIDTH),
        "quarter": np.float32(0.25),
        "least": np.float32(-np.inf),
        "hidden": above,
        "added": np.where(above, np.float32(-1e9), np.float32(0)),
        "lengths": np.full(2, 5, np.int32),
        "total": np.array(6, np.int32),
    }
