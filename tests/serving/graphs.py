"""Packages without layers, each made of a graph's text, recorded inputs and what they give."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo, VectorSet
from moh_deploy.system.npz import BFLOAT16, Array
from tests.handmade_package import without_layers
from tests.true_manifest import finish_true


def write_graph(
    root: Path,
    text: str,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    tables: Mapping[str, Array] | None = None,
) -> OnnxPackage:
    """Write a package; `tables` are initializers of its graph."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    for name, table in (tables or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(table, name))
    taken, given = (
        tuple(map(_info_of, values)) for values in (model.graph.input, model.graph.output)
    )
    sizes = {
        dim: size
        for info in taken
        for dim, size in zip(info.shape, inputs[info.name].shape, strict=True)
        if isinstance(dim, str)
    }
    manifest = replace(without_layers(), inputs=taken, outputs=given, dims=sizes, proof=None)
    with PackageWriter(root) as writer:
        onnx.save(model, writer.path("model.onnx"))
        return finish_true(writer, manifest, (VectorSet(sizes, inputs, outputs, (), ()),))


def _info_of(value: onnx.ValueInfoProto) -> TensorInfo:
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorInfo(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)


TABLE = np.arange(20, dtype=np.float32).reshape(10, 2)
"""Of ten tokens."""


def write_lookup(root: Path) -> OnnxPackage:
    """Write a model that looks tokens up in a table of embeddings."""
    text = "g (int64[batch, seq] ids) => (float[batch, seq, 2] y) { y = Gather (table, ids) }"
    ids = np.array([[1, 9, 0], [2, 2, 4]])
    return write_graph(root, text, {"ids": ids}, {"y": TABLE[ids]}, {"table": TABLE})


def write_mixing(root: Path, operator: str, rows: str = "batch") -> OnnxPackage:
    """Write a model of x minus what an operator makes of the first axis: samples are mixed."""
    text = f"""g (float[{rows}, 2] x) => (float[{rows}, 2] y) <int64[1] axes = {{0}}> {{
      over = {operator} (x, axes)
      y = Sub (x, over)
    }}"""
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    over = x.mean(0) if operator == "ReduceMean" else x.max(0)
    return write_graph(root, text, {"x": x}, {"y": x - over})


def write_scaled(root: Path) -> OnnxPackage:
    """Write a model without a batch axis, whose input and output of one number have no axes."""
    text = """g (float[rows, 3] x, float scale) => (float[rows, 3] output, float total) {
      output = Mul (x, scale)
      total = ReduceSum <keepdims = 0> (output)
    }"""
    x, scale = np.arange(6, dtype=np.float32).reshape(2, 3), np.array(2, np.float32)
    outputs = {"output": x * scale, "total": (x * scale).sum()}
    return write_graph(root, text, {"x": x, "scale": scale}, outputs)


ECHO_TYPES = ("bool", "int64", "int32", "uint8", "float16", "float32", "bfloat16")


def echo_samples(batch: int, seq: int = 4) -> dict[str, Array]:
    """Return random numbers of every dtype, those of float32 a number for each sample."""
    random = np.random.default_rng(batch)
    numbers = {name: random.integers(0, 100, (batch, seq)) for name in ECHO_TYPES}
    numbers["float32"] = numbers["float32"][:, 0]
    return {
        name: (array % 2 if name == "bool" else array).astype(
            BFLOAT16 if name == "bfloat16" else name
        )
        for name, array in numbers.items()
    }


def write_echo(root: Path, first: str = "batch") -> OnnxPackage:
    """Write a model that gives back what it is given, in every dtype.

    Args:
        first: The first axis: of samples, or of a fixed size, so that requests cannot be joined.
    """
    inputs = ", ".join(
        f"float[{first}] float32" if name == "float32" else f"{name}[{first}, seq] {name}"
        for name in ECHO_TYPES
    )
    body = " ".join(f"o_{name} = Identity ({name})" for name in ECHO_TYPES)
    text = f"echo ({inputs}) => ({inputs.replace('] ', '] o_')}) {{ {body} }}"
    sample = echo_samples(2)
    return write_graph(root, text, sample, {f"o_{name}": array for name, array in sample.items()})
