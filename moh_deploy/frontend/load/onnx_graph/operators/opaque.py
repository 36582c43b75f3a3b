"""Nodes of operators that nothing here knows: ONNX Runtime computes them, and they stay."""

from __future__ import annotations

import base64

from moh_deploy.errors import ExportError, MoHDeployError
from moh_deploy.frontend.load.onnx_graph.call import NodeCall, Result
from moh_deploy.frontend.load.onnx_graph.values import as_tensor
from moh_deploy.frontend.torch_ops.opaque import OPAQUE


def computed_by_runtime(call: NodeCall) -> Result:
    """Compute a node of an operator that the table does not have.

    Raises:
        ExportError: What it returns has a shape that cannot be told.
    """
    given = [as_tensor(value) for value in call.values if value is not None]
    # The same input twice is one input of the node alone.
    names = [name for name in call.node.inputs if name]
    if not given or len(set(names)) < len(names):
        raise call.refused("has no inputs, or one twice; its operator is not known")
    encoded = base64.b64encode(call.node.alone(call.opset)).decode()
    try:
        places = range(sum(map(bool, call.node.outputs)))
        made = iter([OPAQUE(given, encoded, place) for place in places])
    except MoHDeployError as error:
        raise ExportError(f"{call.node.place}: {error.message}.", hint=error.hint) from error
    return [next(made) if name else None for name in call.node.outputs]
