"""Predict which choice of a layer is the fastest, before anything is measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import CHOICES, Choice, LayerInfo, Manifest, Runtime, choices_for
from moh_deploy.perf.cost_model.milliseconds import LayerShape, Platform, milliseconds
from moh_deploy.runtime.kernel_use import KernelUse

# A predicted difference smaller than this does not count: the plainer choice is made.
_CLEAR = 0.03


@dataclass(frozen=True)
class Prediction:
    """The times that are predicted for one layer, and where its choices break even."""

    ms: Mapping[str, float]  # each choice that the layer has, the plainest first, to milliseconds
    # Each choice but `dense` to the share of active heads up to which it is faster than the one
    # before it; None where it never is.
    break_even: Mapping[str, float | None]

    @property
    def best(self) -> Choice:
        """The fastest; of two that are as good as equal, the plainer."""
        best: Choice = "dense"
        # From plain to involved: each has to beat the best so far clearly, or the plainer one
        # stays.
        for choice in CHOICES:
            if choice in self.ms and self.ms[choice] < (1 - _CLEAR) * self.ms[best]:
                best = choice
        return best


def platform_of(
    manifest: Manifest,
    kernels: KernelUse,
    runtime: Runtime | None = None,
    threads: int | None = None,
) -> Platform:
    """Return what runs the layers of a package.

    Args:
        manifest: The manifest of the package.
        kernels: The kernels that a session of it uses.
        runtime: None for the runtime that the package was tuned for. Without one that is OpenVINO
            where ONNX Runtime only emulates the package's dtype.
        threads: Threads within an operator; None for one.
    """
    emulated = kernels.emulated_dtype is not None
    runtime = runtime or manifest.runtime or ("openvino" if emulated else "onnxruntime")
    precision, compute_type = manifest.precision, kernels.compute_type
    return Platform(kernels.instruction_set, threads or 1, runtime, precision, compute_type)


def predict(layer: LayerInfo, nodes: LayerNodes, platform: Platform) -> Prediction | None:
    """Predict a layer's times at the example's sizes.

    Args:
        layer: The layer.
        nodes: Its operators.
        platform: What runs it.

    Returns:
        The prediction; None where a size is not known, nothing can be chosen, or a GPU runs it:
        all costs are of CPUs.
    """
    shape, choices = shape_of(layer, nodes), choices_for(layer)
    if shape is None or not choices or platform.runtime == "onnxruntime-cuda":
        return None

    def ms(choice: Choice, at: LayerShape) -> float:
        return milliseconds(at, choice, platform)

    def gains_up_to(choice: Choice, plainer: Choice) -> float | None:
        """Return the share up to which a choice gains: sparse time rises with it, dense not."""

        def gains(share: float) -> bool:
            at = at_share(shape, share)
            return ms(choice, at) < ms(plainer, at)

        return largest_share(gains)

    return Prediction(
        {choice: ms(choice, shape) for choice in choices},
        {choice: gains_up_to(choice, plainer) for plainer, choice in pairwise(choices)},
    )


def largest_share(holds: Callable[[float], bool]) -> float | None:
    """Search by halves the largest share of open heads at which something holds.

    Args:
        holds: True up to some share, and False above it.

    Returns:
        None if it holds at no share.
    """
    if holds(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(20):  # leaves 1e-6, finer than any report shows
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low or None


def shape_of(layer: LayerInfo, nodes: LayerNodes) -> LayerShape | None:
    """Return a layer's sizes as the cost model takes them; None if one is not known."""
    if (
        nodes.op is None
        or layer.seq_len is None
        or layer.kv_len is None
        or layer.num_kv_heads is None
        or layer.head_dim is None
        or layer.active_share is None
    ):
        return None
    # A projection of unknown width would be predicted to cost nothing.
    widths = {
        layer.query_projection: nodes.query_features,
        layer.output_projection: nodes.output_features,
    }
    if any(name is not None and width is None for name, width in widths.items()):
        return None
    shape = LayerShape(
        batch=layer.batch,
        seq_len=layer.seq_len,
        # The manifest counts all keys that a query sees, its window and the pooled ones together.
        kv_len=layer.kv_len - nodes.window,
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        head_dim=layer.head_dim,
        num_shared_heads=layer.num_shared_heads or 0,
        active_share=layer.active_share,
        is_causal=nodes.is_causal,
        has_mask=nodes.has_mask,
        query_features=nodes.query_features,
        output_features=nodes.output_features,
        window=nodes.window,
    )
    return at_share(shape, layer.active_share)


def at_share(shape: LayerShape, active_share: float) -> LayerShape:
    """Return the shape with another share of active heads.

    Shared heads are always active, so no more of them are kept than heads are active.
    """
    shared = min(shape.num_shared_heads, math.floor(active_share * shape.num_heads))
    return replace(shape, active_share=active_share, num_shared_heads=shared)


# Predict from which batch size on, and up to which share of open heads, skipping heads pays.
#
# By layer and for all layers together: against the layers as standard operators that compute every
# head, as a model without routing runs. Routers are not counted: `bench --baseline fixed-routing`
# measures what they cost.


@dataclass(frozen=True)
class BreakEven:
    """Predicted times at one batch size."""

    batch: int  # the batch size
    ms: float  # with heads skipped, each layer as it is fastest
    all_open_ms: float  # the same with every head open
    dense_ms: float  # as standard operators
    # Share of open heads up to which `ms` would be below `dense_ms`; None where it never is.
    share: float | None

    @property
    def pays(self) -> bool:
        """Tell whether skipping heads is faster."""
        return self.ms < self.dense_ms


@dataclass(frozen=True)
class LayerBreakEven:
    """One layer, or all together, at several batch sizes."""

    path: str | None  # the layer; None for all together
    active_share: float  # its share of open heads
    sizes: tuple[BreakEven, ...]  # one for each batch size, ascending

    @property
    def pays_from(self) -> int | None:
        """The smallest batch size from which on it pays at every larger one; None where it does
        not pay at the largest."""
        found = None
        for size in reversed(self.sizes):
            if not size.pays:
                break
            found = size.batch
        return found


_Known = tuple[LayerInfo, LayerShape, tuple[Choice, ...]]
"""A layer that something is predicted for, its sizes, and how it can be run."""


def _known(layers: Sequence[LayerInfo], nodes: Sequence[LayerNodes]) -> list[_Known]:
    return [
        (layer, shape, choices)
        for layer, node in zip(layers, nodes, strict=True)
        if (shape := shape_of(layer, node)) is not None and (choices := choices_for(layer))
    ]


def _open_share(known: Sequence[_Known]) -> float:
    """Return the share of open heads of all layers together."""
    open_heads = sum(shape.active_share * shape.num_heads for _, shape, _ in known)
    return open_heads / sum(shape.num_heads for _, shape, _ in known)


_Sized = Sequence[tuple[LayerShape, tuple[Choice, ...]]]


def _skipping_ms(layers: _Sized, share: float | None, platform: Platform) -> float:
    """Return the time with heads skipped, each layer as it is fastest, at a share of open heads;
    None: each layer's own."""
    total = 0.0
    for own, choices in layers:
        shape = own if share is None else at_share(own, share)
        skipping = (choice for choice in choices if choice != "dense")
        total += min(milliseconds(shape, choice, platform) for choice in skipping)
    return total


def _dense_ms(layers: _Sized, platform: Platform) -> float:
    return sum(milliseconds(shape, "dense", platform) for shape, _ in layers)


def break_even(
    layers: Sequence[LayerInfo],
    nodes: Sequence[LayerNodes],
    batches: Sequence[int],
    *,
    example: int,
    platform: Platform,
) -> tuple[LayerBreakEven, ...]:
    """Predict where layers break even.

    Args:
        layers: The layers.
        nodes: Their operators.
        batches: Batch sizes.
        example: The batch size that the layers' own sizes are of.
        platform: What runs them.

    Returns:
        Each layer that something is predicted for, and last, if there are any, all of these
        together.
    """
    known = _known(layers, nodes)

    def at(chosen: Sequence[_Known], batch: int) -> BreakEven:
        # Windows are samples of a layer's own: as many times as many.
        sized = [
            (replace(shape, batch=max(1, round(shape.batch * batch / example))), choices)
            for _, shape, choices in chosen
        ]

        dense = _dense_ms(sized, platform)
        own, all_open = (_skipping_ms(sized, share, platform) for share in (None, 1.0))
        share = largest_share(lambda share: _skipping_ms(sized, share, platform) < dense)
        return BreakEven(batch, own, all_open, dense, share)

    def over(path: str | None, chosen: Sequence[_Known]) -> LayerBreakEven:
        sizes = tuple(at(chosen, batch) for batch in sorted(set(batches)))
        return LayerBreakEven(path, _open_share(chosen), sizes)

    alone = [over(entry[0].path, [entry]) for entry in known]
    return (*alone, *([over(None, known)] if known else []))


# How the speed of all layers depends on the share of open heads, at the example's sizes.

_SHARES = tuple(percent / 100 for percent in range(5, 101, 5))


@dataclass(frozen=True)
class SpeedByShare:
    """Predicted speed of all layers together, each skipping heads as it is fastest, over dense."""

    points: tuple[tuple[float, float], ...]  # share of open heads, times as fast; ascending
    active_share: float  # the layers' own share of open heads
    speed: float  # at each layer's own share
    break_even: float | None  # share up to which it is above 1; None where it never is


def speed_by_share(
    layers: Sequence[LayerInfo], nodes: Sequence[LayerNodes], platform: Platform
) -> SpeedByShare | None:
    """Predict the speed of layers at all shares of open heads; see `break_even`.

    Returns:
        The prediction; None where nothing is predicted for any layer, or all heads are shared.
    """
    known = _known(layers, nodes)
    if not known or platform.runtime == "onnxruntime-cuda":
        return None
    sized = [(shape, choices) for _, shape, choices in known]
    dense = _dense_ms(sized, platform)

    def speed(share: float | None) -> float:
        return dense / _skipping_ms(sized, share, platform)

    # Shared heads are open whatever the router chooses.
    shared = sum(shape.num_shared_heads for shape, _ in sized)
    least = shared / sum(shape.num_heads for shape, _ in sized)
    points = tuple((share, speed(share)) for share in _SHARES if share >= least)
    if len(points) < 2:
        return None
    return SpeedByShare(
        points,
        _open_share(known),
        speed(None),
        largest_share(lambda share: speed(share) > 1),
    )
