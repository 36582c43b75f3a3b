"""Sort the layers of a package: those with a MoHRouter, and those without or that lost it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from moh_deploy.graph.gate_reads import GateRead, gate_reads
from moh_deploy.graph.router_logits import RouterLogits, router_logits
from moh_deploy.package import LayerInfo, OnnxPackage


@dataclass(frozen=True)
class RoutedLayer:
    """A layer that has a MoHRouter.

    Attributes:
        info: What the manifest says of it.
        router: Its router.
        reads: What it reads as its gates.
    """

    info: LayerInfo
    router: RouterLogits
    reads: Sequence[GateRead]

    @property
    def values(self) -> list[str]:
        """Names of what its router makes, of what its attention makes, and of all between them."""
        named = [self.router.gates, self.router.attention]
        between = [name for read in self.reads for name in read.values]
        return [name for name in dict.fromkeys((*named, *between)) if name]


@dataclass(frozen=True)
class Routing:
    """The layers of a package, with a MoHRouter and without.

    Attributes:
        graph: The graph of the package, its weights perhaps left out.
        routed: Those that have a MoHRouter, in the order in which they run.
        others: Those that have none, or have lost it.
    """

    graph: onnx.GraphProto
    routed: tuple[RoutedLayer, ...]
    others: tuple[LayerInfo, ...]

    @classmethod
    def of(cls, package: OnnxPackage) -> Routing:
        """Read them from the model."""
        # Only nodes are read, so weights in other files stay there.
        graph = onnx.load(package.model_path, load_external_data=False).graph
        layers = package.manifest.layers
        # None for a layer without a MoHRouter; `lost_at` says what stands in its place.
        pairs = list(zip(layers, router_logits(graph, layers), strict=True))
        return cls(
            graph,
            tuple(
                RoutedLayer(layer, router, gate_reads(graph, layer, router.gates))
                for layer, router in pairs
                if router is not None
            ),
            tuple(layer for layer, router in pairs if router is None),
        )
