"""Find MoH layers in an exported program by dataflow.

An MoH layer is an attention whose output, head by head, is multiplied with a gate for each (token,
head) before the heads are merged. Nothing here looks at the name of a class, a module or a
parameter.

    axes, views, contraction   what the dimensions of a tensor mean, through any way of writing
                               views and products
    cores/                     softmax(query @ key) @ value, one file a way of writing it
    track, gates               from each softmax forward to the product with the gates
    aggregated/                one softmax over windows and a pooled image
    elements, known_values     which elements a tensor is moved from; what no input changes
    routers/                   which router form computes the gates
    near_misses, trails        attention with gates that is no layer, and where it was lost; gates
                               of what is no attention
"""

from dataclasses import replace

from torch.export import ExportedProgram

from moh_deploy.frontend.fx.graph import nodes_that_depend_on
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.aggregated.weights import with_token_axes
from moh_deploy.frontend.recognize.cores.softmax import JOINT_SOFTMAX
from moh_deploy.frontend.recognize.gates import layers_of
from moh_deploy.frontend.recognize.layer import MoHLayer
from moh_deploy.frontend.recognize.near_misses import Recognized, find_near_misses
from moh_deploy.frontend.recognize.track import Tracker

__all__ = ["MoHLayer", "Recognized", "recognize", "survey"]


def survey(program: ExportedProgram) -> Recognized:
    """Return the MoH layers of a normalized program, and what else looks like one."""
    graph = program.graph_module.graph
    nodes = list(graph.nodes)
    dynamic = nodes_that_depend_on(graph, program.graph_signature.user_inputs)
    constant = Constants(program)
    tracker = Tracker(nodes, dynamic, constant)
    tracked = tracker.run()
    layers = layers_of(tracker.products, tracked, dynamic, constant)
    found = find_near_misses(nodes, tracked, layers, dynamic, constant)
    layers = [
        with_token_axes(layer)
        if JOINT_SOFTMAX in layer.core.obstacles and layer.projection is None
        else layer
        for layer in layers
    ]
    return replace(found, layers=tuple(layers))


def recognize(program: ExportedProgram) -> list[MoHLayer]:
    """Return the MoH layers of a normalized program, in execution order."""
    return list(survey(program).layers)
