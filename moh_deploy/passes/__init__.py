"""ONNX-level passes, one a file, in the order in which they run.

name_interface       first: later passes and every reader speak of the user's names
keep_gates           the gates leave the model's outputs, but keep a name to be read by
add_function_bodies  last: bodies are chosen by what the nodes look like then
"""

from moh_deploy.passes.add_function_bodies import add_function_bodies
from moh_deploy.passes.keep_gates import LayerNames, keep_gates
from moh_deploy.passes.name_interface import name_interface

__all__ = ["LayerNames", "add_function_bodies", "keep_gates", "name_interface"]
