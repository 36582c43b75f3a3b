"""Make the graph that an engine is built from, and tell what of it runs by kernels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from moh_deploy.errors import BackendError
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.sequences import choose_for_engine, lower_to_tensorrt
from moh_deploy.graph.tell_fields import nodes_with_plugins
from moh_deploy.ops import op_names
from moh_deploy.package import LayerInfo, Manifest, OnnxPackage, choice_at, choices_for
from moh_deploy.runtime.tensorrt.engine_dir import EngineLayer, Implementation
from moh_deploy.runtime.tensorrt.messages import BuildAnswer
from moh_deploy.runtime.tensorrt.preflight import refused_nodes, refused_types
from moh_deploy.runtime.tensorrt.profiles import Profile, opt_sizes
from moh_deploy.runtime.tensorrt.rejection import Rejection

_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class EngineGraph:
    """The graph that is handed to TensorRT, and what is known of its nodes.

    Attributes:
        model: The model; what is refused in it is made of ordinary operators.
        layers: With one choice each, and the dtypes of routers in lower precision.
        routers: Name of each layer's MoHRouter node; None: its router is made of operators.
        plugin_nodes: Names of the nodes that are plugins.
        plugin_ops: Their ops.
        types: Name of each value to its dtype.
        rejections: What the plugins do not take.
    """

    model: ir.Model
    layers: tuple[LayerInfo, ...]
    routers: tuple[str | None, ...]
    plugin_nodes: frozenset[str]
    plugin_ops: tuple[str, ...]
    types: dict[str, str]
    rejections: tuple[Rejection, ...]


def make_engine_graph(
    package: OnnxPackage, profiles: Sequence[Profile], *, plugins: bool
) -> EngineGraph:
    """Lower a package's model, and find out what the plugins refuse.

    Args:
        package: The package, in the engine's precision.
        profiles: Sizes that the engine is for.
        plugins: There is a plugin library.
    """
    model, layers = load_ir(package), engine_choices(package.manifest, profiles)
    choose_for_engine(model, layers)
    # Preflight comes before lowering: it names nodes and ops as the package has them.
    nodes = nodes_with_plugins(model) if plugins else ()
    rejections = refused_nodes(nodes, profiles)
    names = frozenset(node.name or "" for node in nodes) - {one.layer for one in rejections}
    # Before functions are inlined: a MoHRouter that is no plugin is no node afterwards.
    makers = {value.name: node for node in model.graph for value in node.outputs}
    routers = [_router_of(makers.get(one.gates)) if one.router_replaced else None for one in layers]
    values = (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))
    types = {v.name: str(v.dtype.numpy()) for v in values if v.name and v.dtype is not None}
    # TensorRT times tactics on made-up inputs; this tells the plugins how many gates are open in
    # runs.
    shares = {one.node: one.active_share for one in layers if one.node and one.active_share}
    lower_to_tensorrt(model, plugin_nodes=names, open_shares=shares)
    return EngineGraph(
        model,
        layers,
        tuple(routers),
        plugin_nodes=names,
        plugin_ops=tuple(sorted({node.op_type for node in nodes if node.name in names})),
        types=types,
        rejections=rejections + refused_types(types),
    )


def engine_choices(manifest: Manifest, profiles: Sequence[Profile]) -> tuple[LayerInfo, ...]:
    """Return the layers as an engine runs them, with one choice each.

    What was predicted or measured for a CPU says nothing of a GPU: kernels run, and have a dense
    tactic of their own, which TensorRT measures. What somebody chose counts. Where a choice depends
    on sizes, kernels run if they do at the usual sizes of any profile.
    """
    given = manifest.tuning is not None and manifest.tuning.source == "given"
    sizes = [opt_sizes(profile) for profile in profiles] or [{}]

    def chosen(layer: LayerInfo) -> LayerInfo:
        if not choices_for(layer):
            return layer
        dense = given and all(choice_at(layer, one) == "dense" for one in sizes)
        return replace(layer, choice="dense" if dense else "sparse", ranges=())

    return tuple(map(chosen, manifest.layers))


def engine_layers(graph: EngineGraph, plugins: Collection[str]) -> tuple[EngineLayer, ...]:
    """Return what runs each layer if these nodes are plugins."""
    return tuple(
        EngineLayer(
            path=layer.path,
            moh_impl=_implementation(layer.node, plugins),
            router_impl=_implementation(router, plugins),
            choice=layer.choice,
            reason=_reason(layer, router, plugins),
            router_types=layer.router_types,
        )
        for layer, router in zip(graph.layers, graph.routers, strict=True)
    )


def check_network(graph: EngineGraph, answer: BuildAnswer, *, title: str) -> None:
    """Compare the network that was parsed with the graph: which nodes are plugins, and dtypes.

    Raises:
        BackendError: A node is no plugin although it was to be one, or a value has another dtype:
            a router that is to decide in float32 would not.
    """
    # The graph says what is to be a plugin, the parser decides: so it is read back.
    missing = sorted(graph.plugin_nodes.difference(answer.plugins))
    if missing:
        raise BackendError(f"{title} made no plugin of {', '.join(missing)}.")
    for name, dtype in graph.types.items():
        found = answer.types.get(name)
        # Only floats are rounded. A name that the parser did not keep has no dtype to compare.
        if found not in (None, dtype) and {found, dtype} & {*_FLOATS}:
            raise BackendError(f"{title} made '{name}' {found}; the graph says {dtype}.")
    lost = [one.path for one in graph.layers if one.gates not in answer.types]
    if lost:
        raise BackendError(f"{title} has no value for the gates of {', '.join(lost)}.")


def _router_of(node: ir.Node | None) -> str | None:
    """Follow the data, a node's first input, from the gates to what chose the heads."""
    while node is not None and node.op_type != op_names.ROUTER:
        first = node.inputs[0] if node.inputs else None
        node = None if first is None else first.producer()
    return None if node is None else node.name


def _implementation(node: str | None, plugins: Collection[str]) -> Implementation:
    return "operators" if node is None else "kernel" if node in plugins else "function"


def _reason(layer: LayerInfo, router: str | None, plugins: Collection[str]) -> str | None:
    if layer.node in plugins and (router is None or router in plugins):
        return layer.reason
    if layer.node is None:
        return layer.reason or "it was not replaced"
    if layer.choice == "dense":
        return "it was chosen to be dense"
    return "there is no plugin library" if not plugins else "the plugins refuse it"
