"""Packages that TensorRT, or the plugins, do not take; and a TensorRT to take others."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo, Tuning
from tests.handmade_package import HEAD_DIM, MANIFEST, NUM_HEADS, WIDTH, model, vectors
from tests.true_manifest import finish_true

Change = Callable[[onnx.ModelProto], None]


def required_rtx() -> None:
    """Skip a test where there is no TensorRT-RTX."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("no TensorRT-RTX: pip install 'moh-deploy[test-tensorrt]'")


def write_changed(
    output: Path, change: Change, *, width: int | None = None, dense: bool = False
) -> OnnxPackage:
    """Write the handmade package with a change in its graph.

    Args:
        output: The directory.
        change: Makes it.
        width: Of the interface then; None: as it was.
        dense: Somebody chose the layer to be dense.
    """
    content = model()
    change(content)
    manifest, recorded = MANIFEST, vectors()
    if width is not None:
        shape = ("batch", "seq", width)
        inputs, outputs = (TensorInfo("x", "float32", shape),), (TensorInfo("y", "float32", shape),)
        manifest = replace(manifest, inputs=inputs, outputs=outputs)
        zeros = np.zeros((2, 3, width), np.float32)
        recorded = replace(recorded, inputs={"x": zeros}, outputs={"y": zeros})
    if dense:
        for function in (*content.graph.node, *content.functions):
            function.domain = "moh.dense" if function.domain == "moh" else function.domain
        content.opset_import.add(domain="moh.dense", version=1)
        layers = tuple(replace(layer, choice="dense") for layer in manifest.layers)
        manifest = replace(manifest, layers=layers, tuning=Tuning("given", "this machine"))
    with PackageWriter(output) as writer:
        onnx.save(content, writer.path("model.onnx"))
        return finish_true(writer, manifest, [recorded])


def wide_heads(head_dim: int) -> tuple[Change, int]:
    """Return a change to heads of this size, and the width of the interface then."""
    width = NUM_HEADS * head_dim

    def change(content: onnx.ModelProto) -> None:
        for value in (*content.graph.input, *content.graph.output):
            value.type.tensor_type.shape.dim[2].dim_value = width
        weight = numpy_helper.from_array(np.ones((width, NUM_HEADS), np.float32), "weight")
        content.graph.initializer[0].CopyFrom(weight)

    return change, width


def unknown_operators(content: onnx.ModelProto) -> None:
    """Put two operators before the output that no TensorRT has."""
    last = content.graph.node[-1]
    last.output[0] = "scaled"
    content.graph.node.append(helper.make_node("Bernoulli", ["scaled"], ["coin"], name="coin"))
    content.graph.node.append(helper.make_node("Bernoulli", ["coin"], ["y"], name="second coin"))


def double_inside(content: onnx.ModelProto) -> None:
    """Scale in float64."""
    last = content.graph.node.pop()
    nodes = [
        helper.make_node("Cast", [last.input[0]], ["long"], to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["long", "long"], ["squared"]),
        helper.make_node("Cast", ["squared"], ["y"], to=TensorProto.FLOAT),
    ]
    content.graph.node.extend(nodes)


def other_keys(content: onnx.ModelProto) -> None:
    """Let the keys be values of their own, which are those of the queries: -(-x)."""
    (node,) = [item for item in content.graph.node if item.op_type == "MoHAttention"]
    node.input[1] = "keys"
    for name, read in (("keys", "negated"), ("negated", "x")):
        content.graph.node.insert(0, helper.make_node("Neg", [read], [name], name=name))


def fused_attention(content: onnx.ModelProto) -> None:
    """Put ONNX's own Attention, in float32, before the output."""
    last = content.graph.node[-1]
    last.output[0] = "scaled"
    nodes = [
        helper.make_node("Reshape", ["scaled", "split"], ["split_heads"]),
        helper.make_node("Neg", ["split_heads"], ["k"]),
        helper.make_node("Abs", ["split_heads"], ["v"]),
        helper.make_node("Attention", ["split_heads", "k", "v"], ["attended"], name="plain"),
        helper.make_node("Reshape", ["attended", "merge"], ["y"]),
    ]
    content.graph.node.extend(nodes)
    shapes = {"split": [0, NUM_HEADS, -1, HEAD_DIM], "merge": [0, -1, WIDTH]}
    for name, shape in shapes.items():
        content.graph.initializer.append(numpy_helper.from_array(np.array(shape), name))
    content.opset_import[0].version = 23
