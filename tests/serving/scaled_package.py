"""A package without a batch axis, whose input and output of one number have no axes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import parser

from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo, VectorSet
from tests.handmade_package import without_layers
from tests.true_manifest import finish_true

GRAPH = """
<ir_version: 10, opset_import: ["" : 20]> g (float[rows, 3] x, float scale)
=> (float[rows, 3] output, float total) {
  output = Mul (x, scale)
  total = ReduceSum <keepdims = 0> (output)
}
"""


def write_scaled(root: Path) -> OnnxPackage:
    """Write the package."""
    x, scale = np.arange(6, dtype=np.float32).reshape(2, 3), np.array(2, np.float32)
    output = x * scale
    manifest = replace(
        without_layers(),
        inputs=(TensorInfo("x", "float32", ("rows", 3)), TensorInfo("scale", "float32", ())),
        outputs=(TensorInfo("output", "float32", ("rows", 3)), TensorInfo("total", "float32", ())),
        dims={"rows": 2},
        proof=None,
    )
    inputs, outputs = {"x": x, "scale": scale}, {"output": output, "total": output.sum()}
    with PackageWriter(root) as writer:
        onnx.save(parser.parse_model(GRAPH), writer.path("model.onnx"))
        return finish_true(writer, manifest, (VectorSet({"rows": 2}, inputs, outputs, (), ()),))
