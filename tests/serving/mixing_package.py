"""A package whose samples have a part in each other's answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from moh_deploy.package import Manifest, PackageWriter, TensorInfo, VectorSet
from tests.handmade_package import MANIFEST
from tests.true_manifest import finish_true


def write_mixing(root: Path, operator: str, shape: list[int | str]) -> Path:
    """Write a package of x minus what an operator makes of the first axis."""
    info = TensorInfo("x", "float32", tuple(shape))
    graph = helper.make_graph(
        [
            helper.make_node(operator, ["x", "axes"], ["over"], keepdims=1),
            helper.make_node("Sub", ["x", "over"], ["y"]),
        ],
        "mixing",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [0])],
    )
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    dims = {"batch": 3} if "batch" in shape else {}
    over = x.mean(0) if operator == "ReduceMean" else x.max(0)
    manifest: Manifest = replace(
        MANIFEST,
        inputs=(info,),
        outputs=(replace(info, name="y"),),
        dims=dims,
        layers=(),
        ops={},
        proof=None,
    )
    with PackageWriter(root) as writer:
        opset = [helper.make_opsetid("", 20)]
        onnx.save(
            helper.make_model(graph, opset_imports=opset, ir_version=10), writer.path("model.onnx")
        )
        finish_true(writer, manifest, (VectorSet(dims, {"x": x}, {"y": x - over}, (), ()),))
    return root
