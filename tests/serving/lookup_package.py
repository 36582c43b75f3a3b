"""A package without layers that looks tokens up in a table of embeddings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo, VectorSet
from tests.handmade_package import without_layers
from tests.true_manifest import finish_true

TABLE = np.arange(20, dtype=np.float32).reshape(10, 2)
"""Of ten tokens."""


def write_lookup(output: Path) -> OnnxPackage:
    """Write the package."""
    text = "g (int64[batch, seq] ids) => (float[batch, seq, 2] y) { y = Gather (table, ids) }"
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>{text}')
    model.graph.initializer.append(numpy_helper.from_array(TABLE, "table"))
    ids, sizes = np.array([[1, 9, 0], [2, 2, 4]]), {"batch": 2, "seq": 3}
    manifest = replace(
        without_layers(),
        inputs=(TensorInfo("ids", "int64", ("batch", "seq")),),
        outputs=(TensorInfo("y", "float32", ("batch", "seq", 2)),),
        dims=sizes,
        proof=None,
    )
    with PackageWriter(output) as writer:
        onnx.save(model, writer.path("model.onnx"))
        return finish_true(
            writer, manifest, (VectorSet(sizes, {"ids": ids}, {"y": TABLE[ids]}, (), ()),)
        )
