"""Load the model of a package to change it."""

from collections import Counter
from collections.abc import Collection

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, NameFixPass, ShapeInferencePass

from moh_deploy.errors import PackageError
from moh_deploy.graph.switch_by_size import without_switches
from moh_deploy.package.onnx_package import OnnxPackage
from moh_deploy.system.npz import Array

# Replace nodes of custom ops by their bodies in standard operators.

_NO_BODY = "plugin"


def inline_functions(model: ir.Model, *, but: Collection[str]) -> bool:
    """Replace every node that has a body by it, but those of these names, and drop all bodies."""
    modified = bool(model.functions)
    # A body is found by domain, name and overload: a node with an overload of its own has none.
    kept = [node for node in model.graph if node.name in but]
    for node in kept:
        node.overload = _NO_BODY
    InlinePass()(model)
    model.functions.clear()
    for node in kept:
        node.overload = ""
    return modified


# Find out the dtype and shape of every value: a package holds those of inputs and outputs only.


def infer_types(model: ir.Model) -> bool:
    """Write dtypes, and shapes as far as they are known, onto the values of the graph.

    Raises:
        PackageError: A value has no dtype that onnx could infer.
    """

    def known() -> list[str]:
        values = (value for node in model.graph.all_nodes() for value in node.outputs)
        return [f"{value.type} {value.shape}" for value in values]

    before = known()
    ShapeInferencePass(check_type=False, data_prop=True)(model)
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None and value.name:
                raise PackageError(
                    f"model.onnx: the dtype of '{value.name}' ({node.op_type}) cannot be inferred."
                )
    return known() != before


def store_array(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Add an initializer, and return its value."""
    stored = np.ascontiguousarray(array).reshape(array.shape)  # which makes [1] of a number
    tensor = ir.tensor(stored, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value


# Drop the lines of source that torch's exporter notes at each node.

_STACK_TRACE = "pkg.torch.onnx.stack_trace"


def drop_stack_traces(model: ir.Model) -> bool:
    """Remove absolute paths and lines of the author's code: a package is handed to others."""
    nodes = [*model.graph.all_nodes()]
    nodes += [node for function in model.functions.values() for node in function.all_nodes()]
    traces = [node.metadata_props.pop(_STACK_TRACE, None) for node in nodes]
    return any(trace is not None for trace in traces)


def load_ir(package: OnnxPackage) -> ir.Model:
    """Return the model; its weights stay on the disk until they are read.

    Raises:
        PackageError: It is a file of ONNX, but no model: what it says contradicts itself.
    """
    try:
        model = ir.load(package.model_path)
    except Exception as error:  # onnx-ir fails in many ways at what it does not expect
        raise PackageError(
            f"{package.model_path} cannot be read as a model: {type(error).__name__}: {error}."
        ) from error
    drop_stack_traces(model)  # Packages of before 0.2 hold them.
    return model


# Write a package's model in standard operators only, for runtimes that know no functions.

_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
"""The domains of ONNX itself; those for training have no place in a deployed model."""


def to_standard_operators(model: ir.Model) -> bool:
    """Replace every node of a function by its body, in branches too, and drop the functions.

    The opset stays, and so do metadata and all values of the main graph with their names, those
    that nothing reads too: the gates of a layer may be a view that is there to be looked at. An
    `If` that chooses by size how a layer runs goes: both branches have the same body.

    Raises:
        PackageError: An operator is no standard one and has no body, a body is written for another
            opset than the model, or bodies call each other in a circle.
    """
    modified = without_switches(model)
    try:
        modified |= inline_functions(model, but=())
    except (ValueError, ir.passes.PassError, ir.passes.InvariantError) as error:
        raise PackageError(
            f"model.onnx cannot be written without functions: {error}.",
            hint="Export the model again.",
        ) from error
    nodes = [node for node in model.graph.all_nodes() if node.domain not in _STANDARD]
    others = Counter(f"{node.domain}::{node.op_type}" for node in nodes)
    if others:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(others.items()))
        raise PackageError(
            "model.onnx has operators that are no standard ones and have no function body:"
            f" {listed}.",
            hint="They run only where a library has them. Export the model again.",
        )
    # A body's names are unique in the graph that it comes into, but not in the branches there.
    modified |= NameFixPass()(model).modified
    foreign = [domain for domain in model.opset_imports if domain not in _STANDARD]
    for domain in foreign:
        del model.opset_imports[domain]
    return modified or bool(foreign)
