"""Every operator of the table against ONNX Runtime."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.arrays import to_numpy, to_torch
from moh_deploy.frontend.load.checkpoint_file import load_onnx
from moh_deploy.frontend.load.onnx_graph.node_call import ON_NUMBERS, ONNX_OPERATORS
from moh_deploy.ops.op_names import KERNEL_DOMAIN
from tests.frontend.load.onnx_graph.onnx_models import Case
from tests.nightly import sampled

MS = "com.microsoft"


def f(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(f(*shape)) + np.float32(0.1)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def ints(*shape: int, high: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape)


def bools(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) > 0.5


UNIT = np.float32([-0.9, -0.3, 0.0, 0.4, 0.8])
ANY = np.float32([-3.5, -2.5, -0.5, 0.5, 1.5, 2.6])
NAN = np.float32([np.nan, np.inf, -np.inf, 1.0])

UNARY = [
    *(Case(op, [ANY]) for op in ("Abs", "Atan", "Asinh", "Ceil", "Cos", "Cosh", "Erf", "Exp")),
    *(Case(op, [ANY]) for op in ("Floor", "HardSwish", "Neg", "Relu", "Round", "Sigmoid")),
    *(Case(op, [ANY]) for op in ("Sign", "Sin", "Sinh", "Softplus", "Softsign", "Tan", "Tanh")),
    *(Case(op, [ANY]) for op in ("Elu", "Celu", "Selu", "LeakyRelu", "ThresholdedRelu")),
    *(Case(op, [ANY]) for op in ("HardSigmoid", "Mish", "Gelu", "Identity", "Dropout")),
    *(Case(op, [UNIT]) for op in ("Acos", "Asin", "Atanh")),
    *(Case(op, [positive(5)]) for op in ("Log", "Sqrt", "Reciprocal")),
    Case("Acosh", [positive(5) + 1]),
    Case("IsNaN", [NAN]),
    Case("IsInf", [NAN]),
    Case("IsInf", [NAN], {"detect_negative": 0}, name="positive"),
    Case("Not", [bools(5)]),
    Case("BitwiseNot", [ints(5)]),
    Case("Gelu", [ANY], {"approximate": "tanh"}, name="tanh"),
    Case("Gelu", [ANY], domain=MS),
    Case("QuickGelu", [ANY], {"alpha": 1.5}, domain=MS),
    Case("FastGelu", [f(2, 4), f(4, seed=1)], domain=MS),
    Case("FastGelu", [f(2, 4)], domain=MS, name="without bias"),
    Case("BiasGelu", [f(2, 4), f(4, seed=1)], domain=MS),
    Case("PRelu", [f(2, 4), f(4, seed=1)]),
    Case("Cast", [ANY], {"to": onnx.TensorProto.INT64}),
    Case("Cast", [ints(4)], {"to": onnx.TensorProto.BOOL}, name="bool"),
    Case("CastLike", [ints(4), f(1)]),
    Case("Clip", [ANY, scalar(-1), scalar(1)], constants=(1, 2)),
    Case("Clip", [ANY, None, scalar(1)], name="above alone"),
    Case("EyeLike", [f(3, 4)], {"k": 1}),
    Case("Swish", [ANY], {"alpha": 0.5}, opset=24),
    Case("Range", [scalar(0), scalar(20000), scalar(0.5)], constants=(0, 1, 2)),
]

BINARY = [
    *(Case(op, [f(2, 3), f(3, seed=1)]) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(Case(op, [f(2, 3), scalar(0.5)], constants=(1,), name="number") for op in ("Add", "Div")),
    *(Case(op, [scalar(0.5), f(2, 3)], constants=(0,), name="left") for op in ("Sub", "Div")),
    *(Case(op, [ints(6), ints(6, seed=1)]) for op in ("Equal", "Greater", "Less")),
    *(Case(op, [ints(6), ints(6, seed=1)]) for op in ("LessOrEqual", "GreaterOrEqual")),
    Case("Less", [scalar(0.5), f(2, 3)], constants=(0,), name="left"),
    *(Case(op, [bools(6), bools(6, seed=1)]) for op in ("And", "Or", "Xor")),
    *(Case(op, [ints(6), ints(6, seed=1)]) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    Case("Div", [i64(-7, 7, -7, 7), i64(2, 2, -2, -2)], name="whole"),
    Case("Mod", [i64(-7, 7, -7, 7), i64(3, 3, -3, -3)]),
    Case("Mod", [f(4), positive(4)], {"fmod": 1}, name="fmod"),
    Case("Pow", [positive(4), scalar(0.5)], constants=(1,)),
    Case("Pow", [f(4), i64(2, 3, 0, 1)], name="whole"),
    Case("BitShift", [np.uint8([1, 2, 4]), np.uint8([1, 2, 1])], {"direction": "LEFT"}),
    Case("Sum", [f(2, 3), f(3, seed=1), f(1, seed=2)]),
    Case("Mean", [f(2, 3), f(3, seed=1), f(1, seed=2)]),
    Case("Where", [bools(2, 3), f(2, 3), f(3, seed=1)]),
    Case("Where", [bools(2, 3), scalar(-np.inf), f(2, 3)], constants=(1,), name="masked"),
    Case("Where", [bools(2, 3), scalar(0), f(3)], constants=(1,), name="filled with 0"),
    Case("Where", [bools(2, 3), scalar(1), scalar(0)], constants=(1, 2), name="numbers"),
]

LAYOUT = [
    Case("Reshape", [f(2, 3, 4), i64(0, -1)], constants=(1,)),
    Case("Flatten", [f(2, 3, 4)], {"axis": 2}),
    Case("Flatten", [f(2, 3, 4)], {"axis": -1}, name="from the end"),
    Case("Transpose", [f(2, 3, 4)], {"perm": [2, 0, 1]}),
    Case("Transpose", [f(2, 3, 4)], name="turned round"),
    Case("Squeeze", [f(1, 3, 1), i64(-1)], constants=(1,)),
    Case("Squeeze", [f(1, 3, 1)], name="all"),
    Case("Unsqueeze", [f(2, 3), i64(0, -1)], constants=(1,)),
    Case("Expand", [f(3, 1), i64(2, 1, 4)], constants=(1,)),
    Case("Concat", [f(2, 3), f(2, 1, seed=1)], {"axis": -1}),
    Case("Split", [f(2, 5), i64(2, 3)], {"axis": 1}, (1,), outputs=2),
    Case("Split", [f(2, 5)], {"axis": 1, "num_outputs": 2}, outputs=2, name="uneven"),
    Case("Slice", [f(4, 6), i64(1, -4), i64(9, -1), i64(0, 1), i64(2, 1)], {}, (1, 2, 3, 4)),
    Case(
        "Slice", [f(4, 6), i64(-1), i64(-(2**63)), i64(1), i64(-1)], {}, (1, 2, 3, 4), name="back"
    ),
    Case("Gather", [f(4, 3), ints(2, 2, high=4)]),
    Case("Gather", [f(4, 3), np.array(-1, np.int64)], {"axis": 1}, (1,), name="one"),
    Case("Gather", [f(4, 3), i64(-1, 0)], {"axis": 1}, (1,), name="from the end"),
    Case("Gather", [f(4, 3, 2), ints(2, 2, high=3)], {"axis": 1}, name="in between"),
    Case("GatherElements", [f(4, 3), ints(4, 3, high=4)], {"axis": 0}),
    Case("GatherND", [f(4, 3, 2), ints(5, 2, high=3)]),
    Case("GatherND", [f(2, 3, 2), ints(2, 1, high=3)], {"batch_dims": 1}, name="batch"),
    Case("ScatterND", [f(4, 3), i64(0, 2)[:, None], f(2, 3, seed=1)]),
    Case("ScatterND", [f(4, 3), i64(0, 0)[:, None], f(2, 3)], {"reduction": "add"}, name="add"),
    Case("ScatterElements", [f(2, 4), ints(2, 2, high=4), f(2, 2, seed=1)], {"axis": 1}),
    Case(
        "ScatterElements",
        [f(2, 4), i64(0, 3, 1, 2).reshape(2, 2), np.ones((2, 2), np.float32)],
        {"axis": -1},
        (2,),
        name="ones",
    ),
    Case(
        "ScatterElements",
        [f(2, 4), ints(2, 2, high=4), f(2, 2, seed=1)],
        {"axis": 1, "reduction": "add"},
        name="add",
    ),
    Case("Tile", [f(2, 3), i64(2, 1)], constants=(1,)),
    Case("Pad", [f(2, 3), i64(0, 1, 2, 0), scalar(7)], constants=(1, 2)),
    Case("Pad", [f(1, 2, 4, 4), i64(0, 0, 1, 1, 0, 0, 2, 2)], {"mode": "reflect"}, (1,)),
    Case("Pad", [f(2, 3), i64(1, 1), None, i64(-1)], {}, (1, 3), name="axes"),
    Case("Trilu", [f(3, 4)], {"upper": 0}),
    Case("Trilu", [f(3, 4), np.array(1, np.int64)], constants=(1,), name="above"),
    Case("DepthToSpace", [f(1, 8, 2, 3)], {"blocksize": 2}),
    Case("DepthToSpace", [f(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}, name="crd"),
    Case("SpaceToDepth", [f(1, 2, 4, 6)], {"blocksize": 2}),
    Case("Shape", [f(2, 3, 4)], {"start": 1}),
    Case("Size", [f(2, 3, 4)]),
    Case("ConstantOfShape", [i64(2, 10000)], constants=(0,)),
    Case("OneHot", [ints(2, 3, high=4), i64(4), np.float32([-1, 2])], {}, (1, 2)),
    Case("OneHot", [ints(2, 3, high=4), i64(4), np.float32([0, 1])], {"axis": 1}, (1,), name="1"),
]

REDUCTIONS = [
    *(
        Case(op, [positive(2, 3, 4), i64(0, 2)], {"keepdims": 0}, (1,))
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1")
    ),
    *(
        Case(op, [positive(2, 3, 4), i64(-1)], {}, (1,))
        for op in ("ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")
    ),
    Case("ReduceSum", [ints(2, 3)], name="everything"),
    Case("ArgMax", [f(3, 4)], {"axis": 1}),
    Case("ArgMin", [f(3, 4)], {"axis": 0, "keepdims": 0}),
    Case("CumSum", [f(3, 4), np.array(1, np.int64)], {}, (1,)),
    Case(
        "CumSum", [f(3, 4), np.array(1, np.int64)], {"reverse": 1, "exclusive": 1}, (1,), name="r"
    ),
    Case("TopK", [f(3, 6), i64(2)], {}, (1,), outputs=2),
    Case("TopK", [f(3, 6), i64(2)], {"largest": 0, "axis": 0}, (1,), outputs=2, name="least"),
    Case("Softmax", [f(2, 3, 4)], {"axis": 1}),
    Case("LogSoftmax", [f(2, 3, 4)]),
    Case("LpNormalization", [f(2, 3)], {"p": 1, "axis": 0}),
]

PRODUCTS = [
    Case("MatMul", [f(2, 3, 4), f(4, 5, seed=1)]),
    Case("Gemm", [f(3, 4), f(5, 4, seed=1), f(5, seed=2)], {"transB": 1}),
    Case("Gemm", [f(4, 3), f(4, 5, seed=1), f(3, 5)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case(
        "FusedMatMul",
        [f(2, 4, 3), f(2, 5, 4, seed=1)],
        {"transA": 1, "transB": 1, "alpha": 0.25},
        domain=MS,
    ),
    Case("Einsum", [f(2, 3, 4), f(2, 4, 5, seed=1)], {"equation": "bij,bjk->bik"}),
    Case("Conv", [f(1, 4, 6, 7), f(6, 2, 3, 3, seed=1), f(6)], {"group": 2, "pads": [1, 1, 1, 1]}),
    Case(
        "Conv", [f(1, 2, 6, 7), f(3, 2, 3, 3)], {"pads": [0, 1, 2, 1], "strides": [2, 1]}, name="p"
    ),
    Case("Conv", [f(1, 2, 7), f(3, 2, 3)], {"auto_pad": "SAME_UPPER", "strides": [2]}, name="same"),
    Case("ConvTranspose", [f(1, 2, 5), f(2, 3, 3, seed=1)], {"strides": [2], "pads": [1, 1]}),
    Case("AveragePool", [f(1, 2, 6, 6)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", [f(1, 2, 6, 6)], {"kernel_shape": [3, 3], "strides": [2, 2]}),
    Case("GlobalAveragePool", [f(1, 2, 5, 6)]),
    Case("GlobalMaxPool", [f(1, 2, 5, 6)]),
    Case("Resize", [f(1, 2, 3, 3), None, None, i64(1, 2, 6, 9)], {"mode": "linear"}, (3,)),
    Case(
        "Resize",
        [f(1, 2, 3, 3), None, np.float32([1, 1, 2, 2])],
        {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        (2,),
        name="nearest",
    ),
    Case("GridSample", [f(1, 2, 4, 4), f(1, 3, 3, 2) * np.float32(0.4)], {"align_corners": 1}),
]

NORMS = [
    Case("LayerNormalization", [f(2, 3, 4), f(4, seed=1), f(4, seed=2)], {"epsilon": 1e-3}),
    Case("LayerNormalization", [f(2, 3, 4), f(3, 4, seed=1)], {"axis": 1}, name="two axes"),
    Case("RMSNormalization", [f(2, 3, 4), f(4, seed=1)], {"epsilon": 1e-3}, opset=23),
    Case("SimplifiedLayerNormalization", [f(2, 3, 4), f(4, seed=1)], {"epsilon": 1e-3}),
    Case(
        "SkipLayerNormalization",
        [f(2, 3, 4), f(2, 3, 4, seed=1), f(4), f(4, seed=2), f(4, seed=3)],
        domain=MS,
    ),
    Case(
        "SkipSimplifiedLayerNormalization",
        [f(2, 3, 4), f(2, 3, 4, seed=1), f(4)],
        domain=MS,
    ),
    Case(
        "EmbedLayerNormalization",
        [
            ints(2, 3).astype(np.int32),
            ints(2, 3, high=2).astype(np.int32),
            f(5, 4),
            f(6, 4, seed=1),
            f(2, 4, seed=2),
            f(4, seed=3),
            f(4, seed=4),
        ],
        constants=(2, 3, 4, 5, 6),
        outputs=2,
        domain=MS,
    ),
    Case("BatchNormalization", [f(2, 3, 4), f(3), f(3), f(3, seed=1), positive(3)]),
    Case("InstanceNormalization", [f(2, 3, 4), f(3), f(3, seed=1)]),
    Case("GroupNormalization", [f(2, 4, 3), f(4), f(4, seed=1)], {"num_groups": 2}, opset=21),
]

ROPE = [f(9, 2, seed=1), f(9, 2, seed=2)]
ATTENTION = [
    Case(
        "Attention",
        [f(2, 3, 8), f(2, 5, 4, seed=1), f(2, 5, 4, seed=2), f(3, 5, seed=3)],
        {"q_num_heads": 4, "kv_num_heads": 2, "scale": 0.3},
        opset=23,
        name="grouped",
    ),
    Case(
        "Attention",
        [
            f(2, 2, 4, 4),
            f(2, 2, 4, 4, seed=1),
            f(2, 2, 4, 4, seed=2),
            bools(4, 4) | np.eye(4, dtype=bool),
        ],
        {},
        opset=23,
        name="bool",
    ),
    Case(
        "Attention",
        [f(2, 2, 4, 4), f(2, 2, 4, 4, seed=1), f(2, 2, 4, 4, seed=2)],
        {"is_causal": 1},
        opset=24,
        name="causal",
    ),
    Case(
        "Attention",
        [
            f(2, 2, 3, 4),
            f(2, 2, 3, 4, seed=1),
            f(2, 2, 3, 4, seed=2),
            None,
            f(2, 2, 5, 4, seed=3),
            f(2, 2, 5, 4, seed=4),
        ],
        {"is_causal": 1},
        outputs=3,
        opset=23,
        name="cache",
    ),
    Case(
        "Attention",
        [
            f(2, 4, 3, 4),
            f(2, 2, 7, 4, seed=1),
            f(2, 2, 7, 4, seed=2),
            None,
            None,
            None,
            np.array([7, 4]),
        ],
        {"is_causal": 1},
        opset=24,
        name="filled_causal",
    ),
    Case(
        "Attention",
        [
            f(2, 2, 3, 4),
            f(2, 2, 7, 4, seed=1),
            f(2, 2, 7, 4, seed=2),
            f(3, 7, seed=3),
            None,
            None,
            np.array([2, 5]),
        ],
        {},
        opset=24,
        name="filled_masked",
    ),
    Case(
        "Attention",
        [f(1, 2, 4, 4), f(1, 2, 4, 4, seed=1), f(1, 2, 4, 4, seed=2)],
        {"softcap": 1.5},
        opset=23,
        name="softcap",
    ),
    Case(
        "MultiHeadAttention",
        [f(2, 3, 8), f(2, 5, 8, seed=1), f(2, 5, 8, seed=2), f(24, seed=3)],
        {"num_heads": 2},
        domain=MS,
    ),
    Case(
        "MultiHeadAttention",
        [
            f(2, 3, 8),
            f(2, 5, 8, seed=1),
            f(2, 5, 8, seed=2),
            None,
            np.int32([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]),
            f(1, 2, 3, 5, seed=4),
        ],
        {"num_heads": 2, "scale": 0.4},
        domain=MS,
        name="masked",
    ),
    Case(
        "MultiHeadAttention",
        [
            f(2, 3, 8),
            f(2, 3, 8, seed=1),
            f(2, 3, 8, seed=2),
            None,
            None,
            None,
            f(2, 2, 4, 4, seed=5),
            f(2, 2, 4, 4, seed=6),
        ],
        {"num_heads": 2},
        outputs=3,
        domain=MS,
        name="cache",
    ),
    Case(
        "Attention",
        [f(2, 3, 8), f(8, 24, seed=1), f(24, seed=2)],
        {"num_heads": 2, "unidirectional": 1},
        constants=(1, 2),
        domain=MS,
    ),
    Case(
        "GroupQueryAttention",
        [
            f(2, 1, 32),
            f(2, 1, 16, seed=1),
            f(2, 1, 16, seed=2),
            f(2, 2, 4, 8, seed=3),
            f(2, 2, 4, 8, seed=4),
            np.int32([4, 4]),
            np.array(5, np.int32),
        ],
        {"num_heads": 4, "kv_num_heads": 2, "scale": 0.3},
        constants=(5, 6),
        outputs=3,
        domain=MS,
    ),
    Case(
        "GroupQueryAttention",
        [
            f(2, 3, 64),
            f(2, 3, 32, seed=1),
            f(2, 3, 32, seed=2),
            None,
            None,
            np.int32([2, 2]),
            np.array(3, np.int32),
            f(9, 8, seed=5),
            f(9, 8, seed=6),
        ],
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": 1},
        constants=(5, 6),
        outputs=3,
        domain=MS,
        name="prompt",
    ),
    Case("RotaryEmbedding", [f(2, 3, 8), *ROPE, ints(2, 3, high=9)], {"num_heads": 2}, opset=23),
    Case(
        "RotaryEmbedding",
        [f(2, 2, 3, 4), *ROPE, ints(2, 3, high=9)],
        {"interleaved": 1},
        opset=23,
        name="interleaved",
    ),
    Case("RotaryEmbedding", [f(2, 2, 3, 4), ints(2, 3, high=9), *ROPE], {}, domain=MS),
    Case("RotaryEmbedding", [f(2, 2, 3, 4), i64(2), *ROPE], {}, domain=MS, name="start"),
    Case("Trilu", [f(3, 4)], {"upper": 1}, domain=MS),
]

CASES = [*UNARY, *BINARY, *LAYOUT, *REDUCTIONS, *PRODUCTS, *NORMS, *ATTENTION]


@sampled(5)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_operator_computes_what_onnx_runtime_does(case: Case, tmp_path: Path) -> None:
    onnx.save(case.model(), tmp_path / "model.onnx")
    loaded = load_onnx(tmp_path / "model.onnx")
    arguments = [to_torch(case.fed[spec.name]) for spec in loaded.original.source.inputs]
    with torch.no_grad():
        got = loaded.module(*arguments)
    expected = loaded.callable()(*arguments)
    for mine, reference in zip(got, expected, strict=True):
        assert (mine.shape, mine.dtype) == (reference.shape, reference.dtype)
        np.testing.assert_allclose(to_numpy(mine), to_numpy(reference), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("rotary", [0, 1])
@pytest.mark.parametrize(
    ("past", "length", "totals"), [(4, 1, (5, 3)), (0, 3, (3, 2))], ids=["step", "prompt"]
)
def test_samples_of_grouped_attention_have_lengths_of_their_own(
    tmp_path: Path, past: int, length: int, totals: tuple[int, int], rotary: int
) -> None:
    """Lengths are an input: what is traced has to be right for all of them."""
    case = Case(
        "GroupQueryAttention",
        [
            f(2, length, 64),
            f(2, length, 32, seed=1),
            f(2, length, 32, seed=2),
            f(2, 2, past, 16, seed=3) if past else None,
            f(2, 2, past, 16, seed=4) if past else None,
            np.int32([total - 1 for total in totals]),
            np.array(max(totals), np.int32),
            f(9, 8, seed=5),
            f(9, 8, seed=6),
        ],
        {"num_heads": 4, "kv_num_heads": 2, "do_rotary": rotary},
        constants=(6,),
        outputs=3,
        domain=MS,
    )
    onnx.save(case.model(), tmp_path / "model.onnx")
    loaded = load_onnx(tmp_path / "model.onnx")
    arguments = [to_torch(case.fed[spec.name]) for spec in loaded.original.source.inputs]
    got, expected = loaded.module(*arguments), loaded.callable()(*arguments)
    for sample, total in enumerate(totals):
        real = min(total, length)  # tokens behind are padding, and anything
        torch.testing.assert_close(got[0][sample, :real], expected[0][sample, :real])
        for mine, theirs in zip(got[1:], expected[1:], strict=True):
            torch.testing.assert_close(mine[sample, :, :total], theirs[sample, :, :total])


def test_every_operator_of_the_table_has_a_case() -> None:
    tested = {(case.domain, case.op_type) for case in CASES}
    # Ours are tested on packages.
    assert [key for key in ONNX_OPERATORS if key not in tested and key[0] != KERNEL_DOMAIN] == []
    assert {key for key in ON_NUMBERS if key not in ONNX_OPERATORS} == set()


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (
            Case("Slice", [f(4), i64(-2), i64(0), i64(0), i64(-1)], {}, (1, 2, 3, 4)),
            "cuts a part of an axis backwards",
        ),
        (Case("TopK", [f(3, 6), i64(2)], {}, outputs=2), "takes its K from values"),
        (
            Case("MaxPool", [f(1, 2, 6, 6)], {"kernel_shape": [2, 2]}, outputs=2),
            "returns indices",
        ),
        (
            Case(
                "GroupQueryAttention",
                [f(1, 1, 8), f(1, 1, 8), f(1, 1, 8), None, None, np.int32([0]), np.int32(1)],
                {"num_heads": 2, "kv_num_heads": 2, "local_window_size": 4},
                domain=MS,
            ),
            "attends to a window of its own",
        ),
    ],
    ids=lambda value: value.label if isinstance(value, Case) else "",
)
def test_form_that_is_not_supported_is_refused_by_name(
    case: Case, why: str, tmp_path: Path
) -> None:
    onnx.save(case.model(), tmp_path / "model.onnx")
    loaded = load_onnx(tmp_path / "model.onnx")
    arguments = [to_torch(case.fed[spec.name]) for spec in loaded.original.source.inputs]
    with pytest.raises(ExportError, match=rf"node 'the_node' \(.*{case.op_type}\) {why}"):
        loaded.module(*arguments)


def test_the_list_in_the_documents_is_the_table() -> None:
    text = Path("docs/onnx-input.md").read_text()
    listed: set[tuple[str, str]] = set()
    section = text.split("## Operators")[1].split("**Other operators**")[0]
    for domain, names in re.findall(r"^- `([\w.]+)`:((?:.|\n  )+)", section, re.MULTILINE):
        domain = domain.removeprefix("ai.onnx")
        listed |= {(domain, name) for name in re.findall(r"`(\w+)`", names)}
    assert listed == set(ONNX_OPERATORS)
