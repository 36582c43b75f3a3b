"""Function bodies as text: read by people, parsed by onnx.parser."""

from __future__ import annotations

from moh_deploy.errors import ExportError

MIN_OPSET = 18


def check_opset(op_name: str, opset: int) -> None:
    """Refuse an opset in which a body would not mean what it says.

    Raises:
        ExportError: The opset is older than MIN_OPSET, the first in which ReduceMax takes its axes
            as an input and Split takes num_outputs.
    """
    if opset < MIN_OPSET:
        raise ExportError(
            f"{op_name}: function body for opset {opset}; expected {MIN_OPSET} or later.",
            hint=f"Export with opset {MIN_OPSET} or later.",
        )
