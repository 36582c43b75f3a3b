"""What translations of torch operators to ONNX are written with."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript

Value = onnxscript.tensor.Tensor | ir.Value

moh_opset = onnxscript.values.Opset("moh", 1)
