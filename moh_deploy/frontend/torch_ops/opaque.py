"""A node of an ONNX file that nothing here knows, as a torch operator: kept as it is.

    moh_onnx::opaque(Tensor[] inputs, str node, int output) -> Tensor

`node` holds the whole node, so that a traced program carries all that there is to know. ONNX
Runtime computes it and tells its shapes; torch.onnx is given a stand-in for it, which
`graph.stand_ins` replaces by the node itself.
"""

import base64
from collections.abc import Sequence

import onnxscript
import torch
from torch import Tensor

from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.arrays import dtype_name, to_numpy, to_torch
from moh_deploy.graph.stand_ins import STAND_IN, STAND_IN_DOMAIN
from moh_deploy.package import TensorInfo
from moh_deploy.runtime.onnxruntime.session import node_output_types, run_node


@torch.library.custom_op(
    "moh_onnx::opaque",
    mutates_args=(),
    schema="(Tensor[] inputs, str node, int output) -> Tensor",
)
def opaque(inputs: Sequence[Tensor], node: str, output: int) -> Tensor:
    """Compute one output of a node."""
    arrays = [to_numpy(tensor) for tensor in inputs]
    return to_torch(run_node(base64.b64decode(node), arrays)[output])


@opaque.register_fake
def _fake(inputs: Sequence[Tensor], node: str, output: int) -> Tensor:
    """An output without values; symbolic sizes go by their expressions."""
    symbols = {str(size): size for tensor in inputs for size in tensor.shape if not _is_fixed(size)}
    specs = [
        TensorInfo(
            "",
            dtype_name(tensor.dtype),
            tuple(size if _is_fixed(size) else str(size) for size in tensor.shape),
        )
        for tensor in inputs
    ]
    found = node_output_types(base64.b64decode(node), specs)[output]
    unknown = [size for size in found.shape if isinstance(size, str) and size not in symbols]
    if unknown:
        raise ExportError(
            "the shape of what it returns cannot be told before it runs",
            hint="ONNX Runtime has no rule for it, or it depends on values.",
        )
    shape = [symbols[size] if isinstance(size, str) else size for size in found.shape]
    return inputs[0].new_empty(shape, dtype=getattr(torch, found.dtype))


def _is_fixed(size: object) -> bool:
    return isinstance(size, int)


OPAQUE = torch.ops.moh_onnx.opaque.default


def translate_opaque(
    inputs: Sequence[onnxscript.FLOAT], node: str, output: int
) -> onnxscript.tensor.Tensor:
    """Return the stand-in that torch.onnx writes."""
    stand_in = getattr(onnxscript.values.Opset(STAND_IN_DOMAIN, 1), STAND_IN)
    found: onnxscript.tensor.Tensor = stand_in(*inputs, node=node, output=output)
    return found
