"""What translations of torch operators to ONNX are written with."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript

from moh_deploy.ops import VERSION
from moh_deploy.ops.domains import KERNEL_DOMAIN

Value = onnxscript.tensor.Tensor | ir.Value

moh_opset = onnxscript.values.Opset(KERNEL_DOMAIN, VERSION)
