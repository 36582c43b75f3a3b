"""Write a package's model in standard operators only, for runtimes that know no functions."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from moh_deploy.errors import PackageError
from moh_deploy.graph.load_model import inline_functions
from moh_deploy.graph.switch_by_size import without_switches

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
    _require_standard(model)
    # A body's names are unique in the graph that it comes into, but not in the branches there.
    modified |= NameFixPass()(model).modified
    foreign = [domain for domain in model.opset_imports if domain not in _STANDARD]
    for domain in foreign:
        del model.opset_imports[domain]
    return modified or bool(foreign)


def _require_standard(model: ir.Model) -> None:
    others = Counter(
        f"{node.domain}::{node.op_type}"
        for node in model.graph.all_nodes()
        if node.domain not in _STANDARD
    )
    if others:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(others.items()))
        raise PackageError(
            "model.onnx has operators that are no standard ones and have no function body:"
            f" {listed}.",
            hint="They run only where a library has them. Export the model again.",
        )
