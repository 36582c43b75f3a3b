"""Every edit of an ONNX graph, one pass a file; `sequences` has the order in which they run.

A pass edits the graph that it is given. What it returns is true if and only if it changed it.

What only reads a graph is here too: where routers read their logits, which nodes a layer has, what
its values are computed from.
"""

from moh_deploy.graph.add_function_bodies import add_function_bodies
from moh_deploy.graph.choose_layers import choose_layers, ops_of
from moh_deploy.graph.close_input_gaps import close_input_gaps
from moh_deploy.graph.keep_gates import LayerNames, keep_gates, layer_names
from moh_deploy.graph.name_interface import name_interface
from moh_deploy.graph.name_nodes import name_nodes
from moh_deploy.graph.restore_output_types import restore_output_types
from moh_deploy.graph.switch_by_size import without_switches

__all__ = [
    "LayerNames",
    "add_function_bodies",
    "choose_layers",
    "close_input_gaps",
    "keep_gates",
    "layer_names",
    "name_interface",
    "name_nodes",
    "ops_of",
    "restore_output_types",
    "without_switches",
]
