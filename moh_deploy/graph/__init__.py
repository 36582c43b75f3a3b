"""ONNX-level passes, one a file, in the order in which they run.

restore_output_types first, by what translates: outputs are what the program makes
name_interface       next: later passes and every reader speak of the user's names
keep_gates           the gates leave the model's outputs, but keep a name to be read by
name_nodes           what the layers have not named
add_function_bodies  bodies are chosen by what the nodes look like then
choose_layers        last: it moves nodes together with their bodies; also by itself, on a package.
                     `switch_by_size` is a part of it: nodes that depend on sizes

Not at export, but on a package's model, for TensorRT's parser:

close_input_gaps     nodes of plugins list the inputs that they have
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
