"""Make the graph that an engine is built from, and tell what of it runs by kernels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from moh_deploy.errors import BackendError
from moh_deploy.graph.load_model import load_ir
from moh_deploy.graph.plugin_nodes import nodes_with_plugins
from moh_deploy.graph.sequences import choose_for_engine, lower_to_tensorrt
from moh_deploy.ops import op_names
from moh_deploy.package import LayerInfo, Manifest, OnnxPackage, choice_at, choices_for
from moh_deploy.package.cache_buffers import BUFFER
from moh_deploy.runtime.tensorrt.candidates import (
    AttentionCandidates,
    ChosenWay,
    attention_candidates,
)
from moh_deploy.runtime.tensorrt.engine_dir import EngineLayer, Implementation
from moh_deploy.runtime.tensorrt.messages import BuildAnswer
from moh_deploy.runtime.tensorrt.preflight import Rejection, refused_nodes, refused_types
from moh_deploy.runtime.tensorrt.profiles import Profile, fixed_places, opt_sizes

_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class PackageGraph:
    """A package's graph as it is before it is lowered, and what may run its layers."""

    model: ir.Model
    # With one choice each, and the dtypes of routers in lower precision.
    layers: tuple[LayerInfo, ...]
    # Name of each layer's MoHRouter node; None: its router is made of operators.
    routers: tuple[str | None, ...]
    plugin_nodes: Mapping[str, str]  # names of the nodes that the plugins take, to their ops
    no_kernel: Mapping[str, str]  # name of every other attention node to the reason
    candidates: tuple[AttentionCandidates, ...]
    types: dict[str, str]  # name of each value to its dtype
    rejections: tuple[Rejection, ...]

    def lowered(
        self, choices: Mapping[str, ChosenWay], *, is_portable: bool = False
    ) -> EngineGraph:
        """Lower the model, once, and return what TensorRT is given.

        Args:
            choices: Name of an attention node to what runs it.
            is_portable: The engine may run on other GPUs than the one that it is built on.
        """
        ways = {node: choice.way for node, choice in choices.items()}
        plugins = {
            n: op for n, op in self.plugin_nodes.items() if ways.get(n, "kernel") == "kernel"
        }
        attentions = lower_to_tensorrt(
            self.model,
            plugin_nodes=plugins,
            fused_nodes=[node for node, way in ways.items() if way == "fused"],
            # TensorRT times tactics on made-up inputs: this tells the plugins the share of open
            # gates in recorded runs.
            open_shares={
                layer.node: layer.active_share
                for layer in self.layers
                if layer.node and layer.active_share
            },
            is_portable=is_portable,
        )
        return EngineGraph(self, plugins, attentions, choices)


@dataclass(frozen=True)
class EngineGraph:
    """The graph that is handed to TensorRT, and what is known of its nodes."""

    read: PackageGraph  # the package's graph, whose model is lowered now
    plugin_nodes: Mapping[str, str]  # names of the nodes that are plugins, to their ops
    # Name of each attention node that is TensorRT's own to that of the node in its place.
    attentions: Mapping[str, str]
    choices: Mapping[str, ChosenWay]  # name of each attention node to what runs it, and why

    @property
    def model(self) -> ir.Model:
        """Return the lowered model of the engine."""
        return self.read.model

    @property
    def plugin_ops(self) -> tuple[str, ...]:
        """Return the ops with plugins."""
        return tuple(sorted(set(self.plugin_nodes.values())))

    def planned_layers(self) -> tuple[EngineLayer, ...]:
        """Return what runs each layer if the parser does as planned."""
        attentions = tuple(self.attentions.values())
        return engine_layers(self, plugins=self.plugin_nodes, attentions=attentions)


def read_graph(
    package: OnnxPackage,
    profiles: Sequence[Profile],
    *,
    no_plugins: str | None,
    only_kernels: bool = False,
) -> PackageGraph:
    """Read a package's model, and find out what the plugins refuse, and what else may run layers.

    Args:
        package: The package, in the engine's precision.
        profiles: Sizes that the engine is for.
        no_plugins: Why there are no plugins, in half a sentence; None: there are.
        only_kernels: What the plugins take is to run by them.
    """
    model, layers = load_ir(package), engine_choices(package.manifest, profiles)
    places = fixed_places(profiles, package.manifest)
    if places is not None:
        fix_dimension(model, BUFFER, places)  # TensorRT writes into caches of one size
    choose_for_engine(model, layers)
    # Preflight comes before lowering: it names nodes and ops as the package has them.
    nodes = nodes_with_plugins(model) if no_plugins is None else ()
    rejections = refused_nodes(nodes, profiles)
    refused = {rejection.layer for rejection in rejections}
    taken = {node.name or "": node.op_type for node in nodes if node.name not in refused}
    # Before functions are inlined: a MoHRouter that is no plugin is no node afterwards.
    makers = {value.name: node for node in model.graph for value in node.outputs}
    routers = [
        _router_of(makers.get(layer.gates)) if layer.router_replaced else None for layer in layers
    ]
    values = (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))
    types = {v.name: str(v.dtype.numpy()) for v in values if v.name and v.dtype is not None}
    why_not = no_plugins or "the plugins refuse it"
    no_kernel = {
        layer.node: "it was chosen to be dense" if layer.choice == "dense" else why_not
        for layer in layers
        if layer.node is not None and layer.node not in taken
    }
    return PackageGraph(
        model,
        layers,
        tuple(routers),
        plugin_nodes=taken,
        no_kernel=no_kernel,
        candidates=attention_candidates(
            model, layers, ruled_out=no_kernel, only_kernels=only_kernels
        ),
        types=types,
        rejections=rejections + refused_types(types),
    )


def fix_dimension(model: ir.Model, name: str, size: int) -> None:
    """Write a size in place of a dimension's name, wherever a value of the graph has it."""
    for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs)):
        if value.shape is not None:
            names = [dim.value if isinstance(dim, ir.SymbolicDim) else None for dim in value.shape]
            dims = zip(value.shape, names, strict=True)
            value.shape = ir.Shape([size if known == name else dim for dim, known in dims])


def engine_choices(manifest: Manifest, profiles: Sequence[Profile]) -> tuple[LayerInfo, ...]:
    """Return the layers as an engine runs them, with one choice each.

    What was predicted or measured for a CPU says nothing of a GPU: kernels run, and have a dense
    tactic of their own, which TensorRT measures. A mode set by hand counts. Where a choice depends
    on sizes, kernels run if they do at the usual sizes of any profile.
    """
    given = manifest.tuning is not None and manifest.tuning.source == "given"
    sizes = [opt_sizes(profile) for profile in profiles] or [{}]

    def chosen(layer: LayerInfo) -> LayerInfo:
        if not choices_for(layer):
            return layer
        dense = given and all(choice_at(layer, size) == "dense" for size in sizes)
        return replace(layer, choice="dense" if dense else "sparse", ranges=())

    return tuple(map(chosen, manifest.layers))


def engine_layers(
    graph: EngineGraph, *, plugins: Collection[str], attentions: Collection[str]
) -> tuple[EngineLayer, ...]:
    """Return what runs each layer if these nodes are plugins, and those TensorRT's attention."""

    def runs(node: str | None) -> Implementation:
        if node is None:
            return "operators"
        if node in plugins:
            return "kernel"
        return "fused" if graph.attentions.get(node) in attentions else "function"

    def reason(layer: LayerInfo, router: str | None) -> str | None:
        """Return why not all of a layer runs by kernels; None if it does."""
        if layer.node is None:
            return layer.reason or "it was not replaced"
        if layer.node in graph.read.no_kernel:
            return graph.read.no_kernel[layer.node]
        if layer.node not in plugins:
            return graph.choices[layer.node].decision
        # What is left is the router.
        is_kernel = router is None or router in plugins
        return layer.reason if is_kernel else "the plugins refuse its router"

    found = []
    for layer, router in zip(graph.read.layers, graph.read.routers, strict=True):
        choice = graph.choices.get(layer.node or "")
        found.append(
            EngineLayer(
                path=layer.path,
                moh_impl=runs(layer.node),
                router_impl=runs(router),
                choice=layer.choice,
                reason=reason(layer, router),
                router_types=layer.router_types,
                decision=None if choice is None else choice.decision,
                times_ms={} if choice is None else dict(choice.times_ms),
            )
        )
    return tuple(found)


def check_network(graph: EngineGraph, answer: BuildAnswer, *, title: str) -> None:
    """Compare the network that was parsed with the graph: which nodes are plugins, and dtypes.

    Raises:
        BackendError: A node is no plugin although it was to be one, or a value has another dtype:
            a router that is to decide in float32 would not.
    """
    # The graph says what is to be a plugin, the parser decides: so it is read back.
    missing = sorted(set(graph.plugin_nodes).difference(answer.plugins))
    if missing:
        raise BackendError(f"{title} made no plugin of {', '.join(missing)}.")
    for name, dtype in graph.read.types.items():
        found = answer.types.get(name)
        # Only floats are rounded. A name that the parser did not keep has no dtype to compare.
        if found not in (None, dtype) and {found, dtype} & {*_FLOATS}:
            raise BackendError(f"{title} made '{name}' {found}; the graph says {dtype}.")
    lost = [layer.path for layer in graph.read.layers if layer.gates not in answer.types]
    if lost:
        raise BackendError(f"{title} has no value for the gates of {', '.join(lost)}.")


def _router_of(node: ir.Node | None) -> str | None:
    """Follow the data, a node's first input, from the gates to what chose the heads."""
    while node is not None and node.op_type != op_names.ROUTER:
        first = node.inputs[0] if node.inputs else None
        node = None if first is None else first.producer()
    return None if node is None else node.name
