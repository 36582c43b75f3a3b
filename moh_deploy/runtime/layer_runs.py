"""Tell what runs each MoH layer: a session answers for nodes, a package speaks of layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from moh_deploy.ops.routers import form_named
from moh_deploy.package import LayerInfo, choice_text, projections
from moh_deploy.report.report import HIDDEN

LayerImpl = Literal["kernel", "function", "dense"]
"""A node runs on a kernel, as its function body for lack of one, or as that on purpose."""


@dataclass(frozen=True)
class LayerRun:
    """Says what runs one MoH layer, read from the runtime."""

    path: str  # the layer
    # `kernel`, `function` (its function body) or `dense` (the same by choice); None if the layer
    # was not replaced.
    runs_as: LayerImpl | None
    # The same of its MoHRouter node; None if the router is of plain operators.
    router_runs_as: LayerImpl | None
    # The same of its projection nodes, or None.
    projections_run_as: LayerImpl | None = None
    # A choice that depends on sizes, such as `dense if seq<=64, else sparse`; None for one choice.
    # What is said above holds at sizes at which a node is not dense.
    by_size: str | None = None
    # No input changes the gates, so there is no router.
    constant_gates: bool = field(default=False, metadata=HIDDEN)


def layer_runs(
    layers: Sequence[LayerInfo],
    layer_impl: Mapping[str, LayerImpl],
    *,
    routers: Sequence[str | None],
) -> tuple[LayerRun, ...]:
    """Tell what runs each layer.

    Args:
        layers: The package's layers.
        layer_impl: Name of each MoH node to what runs it, as read from a session.
        routers: Name of each layer's MoHRouter node, see `router_nodes`.
    """

    def impl(node: str | None) -> LayerImpl | None:
        return None if node is None else layer_impl[node]

    def of_projections(layer: LayerInfo) -> LayerImpl | None:
        impls = {impl(node) for node in projections(layer)}
        # A layer counts as running on kernels only if both projections do.
        return next((name for name in ("dense", "function", "kernel") if name in impls), None)

    return tuple(
        LayerRun(
            layer.path,
            impl(layer.node),
            impl(router),
            of_projections(layer),
            choice_text(layer) if layer.ranges else None,
            form_named(layer.router).is_constant,
        )
        for layer, router in zip(layers, routers, strict=True)
    )
