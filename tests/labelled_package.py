"""A classifier made by hand: logits [batch, 8], the mean over tokens of the handmade layer.

Its logits are small, so that a bias within the tolerance of outputs turns many predictions.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo, VectorSet
from moh_deploy.system.npz import Array
from tests.handmade_package import MANIFEST, WIDTH, model, vectors
from tests.true_manifest import finish_true

SMALL = np.float32(1e-4)


def write_classifier(
    output: Path, *, batch: int | str = "batch", bias: float = 0.0, range_from: int | None = None
) -> OnnxPackage:
    """Write the package.

    Args:
        output: Where.
        batch: The size of a batch, if it is fixed.
        bias: On class 0; plants a loss of accuracy.
        range_from: The smallest batch that the model was traced for.
    """
    shape = (batch, "seq", WIDTH)
    info = TensorInfo("x", "float32", shape)
    dims = {"batch": 2, "seq": 3} if batch == "batch" else {"seq": 3}
    manifest = replace(
        MANIFEST,
        inputs=(info,),
        outputs=(TensorInfo("logits", "float32", (batch, WIDTH)),),
        dims=dims,
        dim_ranges={"batch": (range_from, None)} if range_from else {},
    )
    recorded = samples(2 if isinstance(batch, str) else batch)
    with PackageWriter(output) as writer:
        onnx.save(_classifier(list(shape), bias), writer.path("model.onnx"))
        return finish_true(writer, manifest, [replace(recorded, sizes=dims)])


def samples(count: int, seed: int = 0) -> VectorSet:
    """Return inputs, and what the right classifier makes of them."""
    one = vectors(batch=count, seed=seed)
    return replace(one, outputs={"logits": one.outputs["y"].mean(axis=1) * SMALL})


def right_labels(one: VectorSet) -> Array:
    """Return the classes that the right classifier predicts, [N]."""
    return one.outputs["logits"].argmax(axis=1)


def write_language_model(output: Path) -> OnnxPackage:
    """Write a package whose tokens ids [batch, seq] are embedded before the handmade layer.

    Its logits y [batch, seq, 8] are of a vocabulary of 8.
    """
    whole = model()
    graph = whole.graph
    table = np.random.default_rng(2).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(table, "table"))
    graph.node.insert(0, helper.make_node("Gather", ["table", "ids"], ["x"]))
    del graph.input[:]
    shape = ["batch", "seq"]
    graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, shape))
    manifest = replace(MANIFEST, inputs=(TensorInfo("ids", "int64", ("batch", "seq")),))
    with PackageWriter(output) as writer:
        onnx.save(whole, writer.path("model.onnx"))
        return finish_true(writer, manifest, ())


def _classifier(shape: list[int | str], bias: float) -> onnx.ModelProto:
    whole = model()
    graph = whole.graph
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["y", "second"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "small"], ["small_mean"]),
            helper.make_node("Add", ["small_mean", "bias"], ["logits"]),
        ]
    )
    biases = np.zeros(WIDTH, np.float32)
    biases[0] = bias
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([1], np.int64), "second"),
            numpy_helper.from_array(SMALL.reshape(1), "small"),
            numpy_helper.from_array(biases, "bias"),
        ]
    )
    del graph.output[:], graph.input[:]
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, shape))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], WIDTH])
    graph.output.append(logits)
    return whole
