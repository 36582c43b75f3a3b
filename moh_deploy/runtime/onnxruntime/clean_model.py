"""Clean a foreign ONNX model before it is read: fold constants, drop unread values.

Exporters leave chains of operators on constants, `Constant` nodes, branches whose condition is
known, and outputs that nothing reads. onnx-graphsurgeon finds them, and ONNX Runtime computes them.
"""

import contextlib
import io
import logging
from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from moh_deploy.errors import CheckpointError

_MOST_BYTES = 1 << 16
"""Larger weights take no part: their transposes and casts are folded later, where they are read."""

RANDOM_OPERATORS = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


def clean_model(model: ir.Model) -> ir.Model:
    """Return a model of equal results, its large weights those of the given one, which is used up.

    Raises:
        CheckpointError: It contradicts itself.
    """
    import onnx_graphsurgeon as gs

    # graphsurgeon would take a `value_float` for a double.
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    notes = {_first_output(node): dict(node.metadata_props) for node in model.graph.all_nodes()}
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    weights = _set_aside(model)
    model.graph.inputs[:] = [*inputs, *weights.values()]
    try:
        with _quiet():
            graph = gs.import_onnx(ir.to_proto(model))
            # In the file's order, in which layers run. Shapes that it writes down for its values
            # are not trusted: fold_shapes is off.
            graph.fold_constants(
                fold_shapes=False,
                size_threshold=_MOST_BYTES,
                should_exclude_node=lambda node: node.op in RANDOM_OPERATORS,
            )
            graph.cleanup()
            cleaned: ir.Model = ir.from_proto(gs.export_onnx(graph, do_type_check=False))
    except Exception as error:  # graphsurgeon fails in many ways at what it does not expect
        raise CheckpointError(
            f"the graph cannot be read: {type(error).__name__}: {error}.",
            hint="onnx.checker.check_model says whether it is a valid model.",
        ) from error
    # Inputs stand in for the large weights, as far as anything reads them.
    stands_in = list(cleaned.graph.inputs)[len(inputs) :]
    del cleaned.graph.inputs[len(inputs) :]
    for value in stands_in:
        if value.uses() or value in cleaned.graph.outputs:
            value.const_value = weights[value.name or ""].const_value
            cleaned.graph.register_initializer(value)
    for node in cleaned.graph.all_nodes():
        node.metadata_props.update(notes.get(_first_output(node), {}))
    cleaned.opset_imports.update(model.opset_imports)
    return cleaned


def _first_output(node: ir.Node) -> str:
    return next((value.name for value in node.outputs if value.name), "")


def _set_aside(model: ir.Model) -> dict[str, ir.Value]:
    """Take out the weights that are large, or lie in another file; return them by name."""
    initializers = model.graph.initializers
    large = {
        name: value
        for name, value in initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
        or (value.const_value is not None and value.const_value.nbytes > _MOST_BYTES)
    }
    for name, value in large.items():
        initializers.pop(name)
        tensor = value.const_value
        assert tensor is not None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
    return large


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Mute graphsurgeon's notes; what fails is raised, and what is not folded is computed later."""
    from onnx_graphsurgeon.logger import G_LOGGER

    before = G_LOGGER.severity
    G_LOGGER.severity = logging.CRITICAL
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        G_LOGGER.severity = before
