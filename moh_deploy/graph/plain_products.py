"""Write projections of layers as the products that they are, for passes that look for products."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

from moh_deploy.graph.load_model import import_domains, store_array
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.ops import is_moh_op, op_names
from moh_deploy.package import LayerInfo
from moh_deploy.system.npz import Array

_PROJECTIONS = (op_names.QUERY_PROJECTION, op_names.OUTPUT_PROJECTION)


def make_projections_plain(
    model: ir.Model, layers: Sequence[LayerInfo]
) -> tuple[bool, tuple[LayerInfo, ...]]:
    """Put MatMul and Add in the place of each MoHQueryProjection and MoHOutputProjection.

    Every row is computed, of open heads or not.

    Args:
        model: Its projections are in float32, and its layers run by `choose_layers` afterwards.
        layers: Those of its package.

    Returns:
        Whether there were any, and the layers without the nodes. One that ran `projected` runs
        `sparse`.
    """
    found = [node for node in model.graph.all_nodes() if is_projection_node(node)]
    if not found:
        return False, tuple(layers)
    without_switches(model)
    for node in [node for node in model.graph if is_projection_node(node)]:
        make_plain(node)
    # An uncalled body would keep its operator on the list of those that a package needs.
    for key in [key for key in model.functions if key[1] in _PROJECTIONS]:
        del model.functions[key]
    import_domains(model)
    return True, tuple(
        replace(
            layer,
            query_projection=None,
            output_projection=None,
            choice="sparse" if layer.choice == "projected" else layer.choice,
            ranges=tuple(
                replace(range_, choice="sparse") if range_.choice == "projected" else range_
                for range_ in layer.ranges
            ),
        )
        for layer in layers
    )


def is_projection_node(node: ir.Node) -> bool:
    return is_moh_op(node.domain, node.op_type) and node.op_type in _PROJECTIONS


def make_plain(node: ir.Node) -> None:
    """Put Y = MatMul(X, W) + bias in the place of a projection, as in its function body."""
    x, weight, _, bias = (*node.inputs, None)[:4]
    made = _replace_by_product(node, x, weight, bias, name=f"{node.name}.MatMul")
    for new in made:
        new.outputs[0].type, new.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape


def _replace_by_product(
    node: ir.Node, x: ir.Value | None, weight: ir.Value | None, bias: ir.Value | None, *, name: str
) -> list[ir.Node]:
    """Put MatMul, and Add where there is a bias, in the place of a node, and return them."""
    (result,) = node.outputs
    assert node.graph is not None
    # The last node makes the value of that name, for all its readers.
    made = [ir.Node("", "MatMul", [x, weight], name=name)]
    if bias is not None:
        made[0].outputs[0].name = f"{result.name}.product"
        made.append(ir.Node("", "Add", [made[0].outputs[0], bias], name=f"{node.name}.Add"))
    ir.convenience.replace_nodes_and_values(
        node.graph, node, [node], made, [result], [made[-1].outputs[0]]
    )
    return made


# Write each Gemm as the MatMul and Add that it is, for passes that look for products.


def products_of_gemms(model: ir.Model, names: Collection[str]) -> bool:
    """Replace Gemms by products of the same names.

    Args:
        names: Those that neither scale nor transpose what they read; a weight may be transposed.
    """
    found = [node for node in model.graph if node.op_type == "Gemm" and node.name in names]
    for node in found:
        x, weight, bias = (*node.inputs, None)[:3]
        transposed = node.attributes.get("transB")
        if transposed is not None and transposed.value:
            turned = ir.Node("", "Transpose", [weight], [ir.AttrInt64s("perm", [1, 0])])
            model.graph.insert_before(node, turned)
            weight = turned.outputs[0]
            weight.name = f"{node.outputs[0].name}.weight"
        _replace_by_product(node, x, weight, bias, name=node.name or "")
    return bool(found)


# Store weights as products read them, where the graph rearranges what is stored at each run.

# Rearranging keeps the bits, and the size: three slices of a packed weight are as large as it is.
_REARRANGING = frozenset(
    {"Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


def store_rearranged(model: ir.Model, products: Collection[str]) -> bool:
    """Let products read stored matrices: those that slices, transpositions and reshapes make of
    stored weights.

    Runtimes do that when they load a model; who looks at the graph, as a quantiser does, sees no
    weights otherwise.

    Args:
        products: Operators whose second input is a weight.
    """
    folded = False
    for node in model.graph:
        is_known = not node.domain or is_moh_op(node.domain, node.op_type)
        if not is_known or node.op_type not in products or len(node.inputs) < 2:
            continue
        weight = node.inputs[1]
        if weight is None or weight.producer() is None:
            continue
        array = _stored_array(weight, model.opset_imports[""])
        if array is None:
            continue
        name = f"{weight.name}.stored"
        stored = model.graph.initializers.get(name)
        stored = stored or store_array(model.graph, name, array)
        for use in list(weight.uses()):
            use.node.replace_input_with(use.idx, stored)
        _drop(model, weight)
        folded = True
    return folded


def _stored_array(value: ir.Value, opset: int) -> Array | None:
    """Return what a value holds if it is a stored weight, or one that was rearranged."""
    node = value.producer()
    if node is None:
        return None if value.const_value is None else value.const_value.numpy()
    if node.domain or node.op_type not in {*_REARRANGING, "Constant"}:
        return None
    given: dict[str, Array] = {}
    for operand in node.inputs:
        if operand is None:
            continue
        array = _stored_array(operand, opset)
        if array is None or operand.name is None:
            return None
        given[operand.name] = array
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in given.items()
    ]
    outputs = [onnx.ValueInfoProto(name=value.name)]
    graph = helper.make_graph([ir.serde.serialize_node(node)], "rearranged", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    (found,) = ReferenceEvaluator(model).run([value.name], given)
    return np.ascontiguousarray(found)


def _drop(model: ir.Model, value: ir.Value) -> None:
    """Drop the nodes and stored weights of an unread value."""
    if value.uses() or value.is_graph_output():
        return
    node = value.producer()
    if node is None:
        model.graph.initializers.pop(value.name or "", None)
        return
    if any(output.uses() for output in node.outputs):
        return
    inputs = [value for value in node.inputs if value is not None]
    model.graph.remove(node, safe=True)
    for operand in inputs:
        _drop(model, operand)
