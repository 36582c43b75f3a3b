"""Replace nodes of custom ops by their bodies in standard operators."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

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
