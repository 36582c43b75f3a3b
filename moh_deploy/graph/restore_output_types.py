"""Give outputs the dtypes that they have in the program.

torch.onnx computes a sum of float16 in float32, which readers within the graph see rounded again,
but not the graph's outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def restore_output_types(model: ir.Model, dtypes: Sequence[ir.DataType]) -> bool:
    """Round outputs that are of another dtype, by the Cast that readers have where there is one.

    Args:
        dtypes: Of each output in the program.
    """
    outputs = list(model.graph.outputs)
    # An output without a dtype is not known to be wrong.
    wrong = [i for i, dtype in enumerate(dtypes) if outputs[i].dtype not in (None, dtype)]
    for index in wrong:
        value, dtype = outputs[index], dtypes[index]
        model.graph.outputs[index] = _cast(value, dtype) or _new_cast(model.graph, value, dtype)
    return bool(wrong)


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Value | None:
    # Where readers within the graph see it rounded, the Cast that they read is the output.
    for node in value.consumers():
        # The readers' own Cast holds what the program computed: a new one would be the same again.
        if node.op_type == "Cast" and node.attributes["to"].as_int() == dtype:
            return node.outputs[0]
    return None


def _new_cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    node = ir.node("Cast", [value], {"to": dtype})
    node.outputs[0].dtype, node.outputs[0].shape = dtype, value.shape
    node.outputs[0].name = f"{value.name}_{dtype.name.lower()}"
    graph.append(node)
    return node.outputs[0]
