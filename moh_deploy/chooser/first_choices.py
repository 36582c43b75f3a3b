"""Choose for every layer by prediction: what an export does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx
import onnx_ir as ir

from moh_deploy.chooser.prediction import predict
from moh_deploy.package import LayerInfo, choices_for, layer_nodes, projections


def first_choices(
    model: ir.Model, layers: Sequence[LayerInfo], *, instruction_set: str | None
) -> tuple[LayerInfo, ...]:
    """Return the layers with the choice that is predicted to be the fastest.

    A layer that nothing is predicted for runs on kernels as far as it can.

    Args:
        model: Its nodes tell what the layers do.
        layers: The layers.
        instruction_set: What kernels run on; None for AVX-512.
    """
    nodes = layer_nodes(_graph_of(model, layers), layers)
    predictions = [
        predict(layer, one, instruction_set=instruction_set)
        for layer, one in zip(layers, nodes, strict=True)
    ]
    return tuple(
        replace(layer, choice=found.best if found else (choices_for(layer) or (None,))[-1])
        for layer, found in zip(layers, predictions, strict=True)
    )


def _graph_of(model: ir.Model, layers: Sequence[LayerInfo]) -> onnx.GraphProto:
    """Return the layers' nodes and the shapes of their constants, without any data."""
    names = {name for layer in layers for name in (layer.node, *projections(layer))}
    nodes = [node for node in model.graph if node.name in names]
    constants = {
        value.name: value.const_value.shape.numpy()
        for node in nodes
        for value in node.inputs
        if value is not None and value.const_value is not None
    }
    return onnx.GraphProto(
        node=[ir.serde.serialize_node(node) for node in nodes],
        initializer=[onnx.TensorProto(name=name, dims=dims) for name, dims in constants.items()],
    )
