"""The order in which passes edit a graph, for each job that has more than one.

Variants of a package that are opened to compare or time it are edits by one or two passes, on
protos without weights, and stand where they are opened: `runtime/variants.py`.
"""

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from moh_deploy.config.dims import DimExpr
from moh_deploy.graph import export_names
from moh_deploy.graph.choose_layers import choose_layers
from moh_deploy.graph.load_model import add_function_bodies, infer_types, inline_functions
from moh_deploy.graph.plugin_nodes import close_input_gaps, float_masks, fuse_attention, tell_fields
from moh_deploy.graph.precision_casts import Raised, lower_precision, raise_precision
from moh_deploy.graph.precision_policy import LowType, PrecisionPlan, plan_precision
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.package import LayerInfo


def finish_export(
    model: ir.Model,
    layers: Sequence[export_names.TranslatedLayer],
    *,
    dims: Sequence[Mapping[int, DimExpr]],
    outputs: Sequence[str],
    output_types: Sequence[ir.DataType],
    opset: int,
) -> tuple[export_names.LayerNames, ...]:
    """Make the model of a package of what torch.onnx wrote; `choose_layers` is still to come, when
    it is predicted how each layer runs best.

    Args:
        model: Its outputs are those of the program, then the gates of each layer, then the views.
        layers: In the order in which they run.
        dims: For each input, axis to dimension.
        outputs: A name for each output of the program.
        output_types: The dtype of each output in the program, gates and views included.
        opset: Version of the standard operators.

    Returns:
        How each layer is named in the model.
    """
    extra = [f"moh.extra.{index}" for index in range(len(output_types) - len(outputs))]
    # Outputs may be replaced: before anybody names them.
    export_names.restore_output_types(model, output_types)
    # Later passes, and every reader of a package, speak of the user's names.
    export_names.name_interface(model, dims=dims, outputs=[*outputs, *extra])
    names = export_names.keep_gates(model, layers)
    # What the layers have not named.
    export_names.name_nodes(model, keep=frozenset().union(*(layer.nodes for layer in names)))
    # Bodies are chosen by what the nodes look like, so all that shapes nodes comes before. What
    # moves nodes together with their bodies, `choose_layers`, comes behind.
    add_function_bodies(model, opset=opset)
    return names


def lower(
    model: ir.Model, layers: Sequence[LayerInfo], low: LowType, largest: Mapping[str, float]
) -> PrecisionPlan:
    """Bring a package's model, all of whose floats are float32, to lower precision.

    Args:
        layers: What the package says of them.
        low: What operators compute in that may.
        largest: Value name to the largest absolute number that was recorded in it.

    Returns:
        What each operator computes in.
    """
    # A plan is made of the types of values, which are not known of those in branches.
    without_switches(model)
    infer_types(model)
    plan = plan_precision(model, low, largest, gates=frozenset(layer.gates for layer in layers))
    lower_precision(model, plan)
    # Bodies fit every dtype, and the switches come back.
    choose_layers(model, layers)
    return plan


def raise_to_float32(
    model: ir.Model, low: LowType, weights: Mapping[str, ir.TensorProtocol] | None
) -> Raised:
    """Bring a package's model back to float32; `choose_layers` brings its switches back.

    Args:
        low: What it was lowered to.
        weights: As of `raise_precision`.
    """
    without_switches(model)
    infer_types(model)
    return raise_precision(model, low, weights)


def choose_for_engine(model: ir.Model, layers: Sequence[LayerInfo]) -> bool:
    """Bring a package's model to the one choice that each of its layers has in an engine.

    Preflight reads the types of the nodes that are left: see `nodes_with_plugins`.
    """
    chosen = choose_layers(model, layers)
    return infer_types(model) or chosen


def lower_to_tensorrt(
    model: ir.Model,
    *,
    plugin_nodes: Collection[str],
    fused_nodes: Collection[str],
    open_shares: Mapping[str, float],
    is_portable: bool = False,
) -> dict[str, str]:
    """Turn a package's model into what TensorRT's parser and the plugins take.

    Not needed, and so not done: int64 indices (TensorRT has them from 10.0 on); constant top-k (an
    attribute of MoHRouter, a constant in its body); float32 `Attention` (the network makes it
    decomposable: `runtime/tensorrt/builder.py`).

    Args:
        model: Its layers have one choice each (`choose_for_engine`): no `If` by size is left.
        plugin_nodes: Names of the nodes that are to be plugins.
        fused_nodes: Names of those that are to be an attention of TensorRT's own.
        open_shares: Name of an attention node to its share of open gates, where that is known.
        is_portable: The engine may run on other GPUs than the one that it is built on.

    Returns:
        Name of each of `fused_nodes` to that of the Attention in its place.
    """
    # The parser finds functions by name alone, without domain: it would take the node of a dense
    # layer for a plugin, and one body for another; and up to TensorRT 10.6 it prefers a function to
    # a plugin. So no function is left.
    inline_functions(model, but={*plugin_nodes, *fused_nodes})
    # Behind that: bodies are of the opset that the model had until now.
    fused = fuse_attention(model, fused_nodes)
    # Of plugins alone, and before an input changes its place.
    float_masks(model, plugin_nodes)
    # The parser refuses nodes that leave out an input in between.
    close_input_gaps(model)
    # Last: closing a gap says which inputs there are, and that is a field.
    tell_fields(model, open_shares, is_portable=is_portable)
    return fused
