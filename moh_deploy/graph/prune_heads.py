"""Keep the same heads for every token: cut the weights of the others, and fix the gates.

    gates = Router(X)                              gates' = Expand([g of the kept heads])
    Y = MoHAttention(X Wq, X Wk, X Wv, gates) Wo   Y = MoHAttention(X Wq', X Wk', X Wv', gates') Wo'

Wq' has the columns of the kept heads, and Wo' their rows. A key/value head goes when all of its
query heads do. Where the groups that are left are not of one size, keys and values are repeated
behind their projections, so that they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from moh_deploy.graph.load_model import (
    add_function_bodies,
    drop_bodies,
    infer_types,
    own_attributes,
    types_of_inputs,
)
from moh_deploy.graph.narrowing import FixedHeads, LayerEdit, Narrowing, NotNarrowedError
from moh_deploy.graph.narrowing.rules import RULES
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.ops import OPS, is_moh_op
from moh_deploy.package import LayerInfo


@dataclass(frozen=True)
class Pruned:
    """The result of pruning: the layers that are left, and why others could not be pruned."""

    layers: tuple[LayerInfo, ...]  # as the model has them now; `choose_layers` is still to come
    # Path of each layer that could not be changed to why. With any, the model is of no use.
    reasons: dict[str, str]
    # Path of each layer to what became of its keys and values, where that has to be said.
    notes: dict[str, tuple[str, ...]]


def prune_heads(
    model: ir.Model, layers: Sequence[LayerInfo], fixed: Sequence[FixedHeads]
) -> Pruned:
    """Let each layer of a package's model run some heads, and drop routers and cut weights.

    Args:
        model: In float32; changed in place.
        layers: Those of its package.
        fixed: What is left of each.
    """
    without_switches(model)
    _tell_shapes(model)
    narrowing = Narrowing(model, RULES)
    nodes = {node.name: node for node in model.graph if node.name}
    found: list[LayerInfo] = []
    reasons: dict[str, str] = {}
    notes: dict[str, tuple[str, ...]] = {}
    routed: dict[str, ir.Value] = {}
    for layer, heads in zip(layers, fixed, strict=True):
        try:
            edit = LayerEdit.of(narrowing, nodes, layer, heads)
            found.append(edit.cut() if heads.is_cut else edit.close())
        except NotNarrowedError as error:
            reasons[layer.path] = str(error)
            found.append(layer)
            continue
        routed[layer.path] = edit.routed
        if edit.notes:
            notes[layer.path] = tuple(edit.notes)
    RemoveUnusedNodesPass()(model)
    for path, gates in routed.items():
        # A node that was dropped is in no graph; a weight that was has no reader.
        maker = gates.producer()
        if gates.uses() if maker is None else maker.graph is not None:
            reasons[path] = "something besides its attention reads the gates that its router makes"
    if not reasons:
        # Attention whose heads are grouped no more needs another body, and a router none.
        drop_bodies(model)
        add_function_bodies(model, opset=model.opset_imports[""])
    return Pruned(tuple(found), reasons, notes)


def _tell_shapes(model: ir.Model) -> None:
    """Find out shapes, those of our operators by their own rules: a body hides how many heads there
    are."""
    infer_types(model)
    told = False
    for node in model.graph:
        if not is_moh_op(node.domain, node.op_type):
            continue
        spec, (result,) = OPS[node.op_type], node.outputs
        (made,) = spec.shape_rule(types_of_inputs(node), own_attributes(spec, node))
        known = [isinstance(dim, int) for dim in result.shape or ()]
        if sum(known) < sum(isinstance(dim, int) for dim in made.shape):
            result.shape, told = ir.Shape(made.shape), True
    if told:
        infer_types(model)
