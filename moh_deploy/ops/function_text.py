"""Function bodies as text: read by people, parsed by onnx.parser."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from moh_deploy.errors import ExportError
from moh_deploy.ops.op_names import KERNEL_DOMAIN

MIN_OPSET = 18


def parsed_function(
    signature: str, steps: Iterable[str], *, opset: int, domain: str | None = None
) -> onnx.FunctionProto:
    """Return a function body.

    Args:
        signature: Name of the op, its attributes, inputs and outputs: `Op <size> (X, W) => (Y)`.
        steps: In the ONNX text format. Each makes the names that later ones read.
        opset: Version of the standard ops that the model imports.
        domain: One whose ops, of version 1, the steps use besides.

    Raises:
        ExportError: The opset is older than MIN_OPSET, the first in which ReduceMax takes its axes
            as an input and Split takes num_outputs.
    """
    if opset < MIN_OPSET:
        op_name = signature.split()[0]
        raise ExportError(
            f"{op_name}: function body for opset {opset}; expected {MIN_OPSET} or later.",
            hint=f"Export with opset {MIN_OPSET} or later.",
        )
    imports = f'"" : {opset}' + (f', "{domain}" : 1' if domain else "")
    head = f'<domain: "{KERNEL_DOMAIN}", opset_import: [{imports}]> {signature}'
    return onnx.parser.parse_function(f"{head} {{ {' '.join(steps)} }}")
