"""Write each Gemm as the MatMul and Add that it is, for passes that look for products."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir


def products_of_gemms(model: ir.Model, names: Collection[str]) -> bool:
    """Replace Gemms by products of the same names.

    Args:
        names: Those that neither scale nor transpose what they read; a weight may be transposed.
    """
    found = [node for node in model.graph if node.op_type == "Gemm" and node.name in names]
    for node in found:
        _replace(node)
    return bool(found)


def _replace(node: ir.Node) -> None:
    x, weight, bias = (*node.inputs, None)[:3]
    (result,) = node.outputs
    assert node.graph is not None
    made: list[ir.Node] = []
    transposed = node.attributes.get("transB")
    if transposed is not None and transposed.value:
        made.append(ir.Node("", "Transpose", [weight], [ir.AttrInt64s("perm", [1, 0])]))
        weight = made[-1].outputs[0]
        weight.name = f"{result.name}.weight"
    made.append(ir.Node("", "MatMul", [x, weight], name=node.name))
    if bias is not None:
        made[-1].outputs[0].name = f"{result.name}.product"
        made.append(ir.Node("", "Add", [made[-1].outputs[0], bias], name=f"{node.name}.Add"))
    ir.convenience.replace_nodes_and_values(
        node.graph, node, [node], made, [result], [made[-1].outputs[0]]
    )
