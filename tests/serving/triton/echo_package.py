"""A package without layers that gives back what it is given, in every dtype."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import parser

from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo, VectorSet
from moh_deploy.system.npz import BFLOAT16, Array
from tests.handmade_package import without_layers
from tests.true_manifest import finish_true

ECHO_TYPES = {
    "bool": "BOOL",
    "int64": "INT64",
    "int32": "INT32",
    "uint8": "UINT8",
    "float16": "FP16",
    "float32": "FP32",
    "bfloat16": "BF16",
}


def echo_samples(batch: int, seq: int = 4) -> dict[str, Array]:
    """Return random numbers of every dtype, the first of them a number for each sample."""
    random = np.random.default_rng(batch)
    numbers = {name: random.integers(0, 100, (batch, seq)) for name in ECHO_TYPES}
    numbers["float32"] = numbers["float32"][:, 0]
    return {
        name: (array % 2 if name == "bool" else array).astype(
            BFLOAT16 if name == "bfloat16" else name
        )
        for name, array in numbers.items()
    }


def write_echo(output: Path, first: str | int = "batch") -> OnnxPackage:
    """Write the package.

    Args:
        first: The first axis: of samples, or of a fixed size, so that requests cannot be joined.
    """
    shapes: dict[str, tuple[str | int, ...]] = {
        name: (first,) if name == "float32" else (first, "seq") for name in ECHO_TYPES
    }
    elements = {"float32": "float"}
    inputs = ", ".join(
        f"{elements.get(name, name)}[{', '.join(map(str, shape))}] {name}"
        for name, shape in shapes.items()
    )
    outputs = inputs.replace("] ", "] o_")
    body = " ".join(f"o_{name} = Identity ({name})" for name in ECHO_TYPES)
    text = f'<ir_version: 10, opset_import: ["" : 20]> echo ({inputs}) => ({outputs}) {{ {body} }}'
    sample = echo_samples(2)
    sizes = {"batch": 2, "seq": 4} if first == "batch" else {"seq": 4}
    manifest = replace(
        without_layers(),
        inputs=tuple(TensorInfo(name, name, shapes[name]) for name in ECHO_TYPES),
        outputs=tuple(TensorInfo(f"o_{name}", name, shapes[name]) for name in ECHO_TYPES),
        dims=sizes,
        proof=None,
    )
    recorded = VectorSet(sizes, sample, {f"o_{name}": one for name, one in sample.items()}, (), ())
    with PackageWriter(output) as writer:
        onnx.save(parser.parse_model(text), writer.path("model.onnx"))
        return finish_true(writer, manifest, (recorded,))
