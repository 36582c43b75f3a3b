"""Give each overload of a function a name of its own.

TensorRT's parser finds functions by name only, so of two overloads it takes the wrong one.
"""

from __future__ import annotations

import onnx_ir as ir

from moh_deploy.ops.plugin_support import PLUGINS


def separate_overloads(model: ir.Model) -> tuple[str, ...]:
    """Rename overloads, in functions and nodes, of ops that have no plugin.

    An op with a plugin keeps its name, by which the plugin is found: its function bodies are not
    used where the library is loaded.

    Returns:
        The new names.
    """
    overloads = [key for key in model.functions if key[2] and key[1] not in PLUGINS]
    names = {key: f"{key[1]}_{key[2]}" for key in overloads}
    for node in list(model.graph.all_nodes()):
        key = node.op_identifier()
        if key in names:
            node.op_type, node.overload = names[key], ""
    for key, name in names.items():
        function = model.functions.pop(key)
        function.name, function.overload = name, ""
        model.functions[function.identifier()] = function
    return tuple(sorted(names.values()))
