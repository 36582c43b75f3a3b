"""Write projections of layers as the products that they are, for passes that look for products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from moh_deploy.graph.add_function_bodies import import_domains
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.ops import is_moh_op, op_names
from moh_deploy.package import LayerInfo

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
    # A body that nobody calls would keep its operator on the list of those that a package needs.
    for key in [key for key in model.functions if key[1] in _PROJECTIONS]:
        del model.functions[key]
    import_domains(model)
    return True, tuple(map(_without_projections, layers))


def is_projection_node(node: ir.Node) -> bool:
    return is_moh_op(node.domain, node.op_type) and node.op_type in _PROJECTIONS


def make_plain(node: ir.Node) -> None:
    """Put Y = MatMul(X, W) + bias in the place of a projection, as in its function body."""
    x, weight, _, bias = (*node.inputs, None)[:4]
    (result,) = node.outputs
    assert node.graph is not None
    # The last node makes the value of that name, whoever reads it.
    product = ir.Node("", "MatMul", [x, weight], name=f"{node.name}.MatMul")
    made = [product]
    if bias is not None:
        product.outputs[0].name = f"{result.name}.product"
        made.append(ir.Node("", "Add", [product.outputs[0], bias], name=f"{node.name}.Add"))
    for new in made:
        new.outputs[0].type, new.outputs[0].shape = result.type, result.shape
    ir.convenience.replace_nodes_and_values(
        node.graph, node, [node], made, [result], [made[-1].outputs[0]]
    )


def _without_projections(layer: LayerInfo) -> LayerInfo:
    ranges = tuple(
        replace(range_, choice="sparse") if range_.choice == "projected" else range_
        for range_ in layer.ranges
    )
    return replace(
        layer,
        query_projection=None,
        output_projection=None,
        choice="sparse" if layer.choice == "projected" else layer.choice,
        ranges=ranges,
    )
