"""Load the model of a package to change it."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from moh_deploy.errors import PackageError
from moh_deploy.package.onnx_package import OnnxPackage

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
    before = _known(model)
    ShapeInferencePass(check_type=False, data_prop=True)(model)
    for node in model.graph:
        for value in node.outputs:
            if value.dtype is None and value.name:
                raise PackageError(
                    f"model.onnx: the dtype of '{value.name}' ({node.op_type}) cannot be inferred."
                )
    return _known(model) != before


def _known(model: ir.Model) -> list[str]:
    values = (value for node in model.graph.all_nodes() for value in node.outputs)
    return [f"{value.type} {value.shape}" for value in values]


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
