"""Find where an error enters a model, from a run to which the reference gates were fed.

What is fed is right, so an error shows first where it is made, and in what is behind that. For each
layer it is known, in this order, what its router ranked, its gates, and what its attention
computed. Said is what was measured there, and no more.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from moh_deploy.graph.layer_reads import LayerSource, LayerSources
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity

CLEARLY = 10.0
"""What agrees rules an error out if it is off by a tenth of what shows that error, or less, both as
shares of their tolerances: a small error may move one value beyond what is allowed, and another one
nearly as far."""


_MOST_LISTED = 3


def diagnosis(
    layers: Sequence[LayerParity], outputs: Sequence[OutputParity], sources: Sequence[LayerSources]
) -> str:
    """Name the layer in which the error enters the model, in a sentence for the report.

    Args:
        layers: Every layer of one run with forced routing, in the order in which they run.
        sources: What each layer is computed from.
    """
    # From the surest evidence to the weakest: an attention that differs names a layer, outputs that
    # differ name what is behind the layers, and a router that differs alone names itself.
    start = "With the reference gates fed to every layer"
    attention = next((i for i, layer in enumerate(layers) if "attention" in layer.wrong), None)
    if attention is not None:
        return f"{start}, {_attention_first(layers, attention, sources)}."
    wrong = [output.reason is not None for output in outputs]
    if any(wrong):
        return f"{start}, outputs still differ: {_behind(layers, outputs)}."
    if any(layer.wrong for layer in layers):
        return f"{start}, {_routers_alone(layers)}."
    if any(layer.no_data for layer in layers):
        return f"{start}, nothing that could be judged differs."
    nearest = max(layers, key=_share)
    return (
        f"{start}, all agrees, so errors below the tolerance added up; nearest to it is layer"
        f" '{nearest.path}', with {_share(nearest):.0%} of what it may differ."
    )


def reference_is_nan(values: Iterable[Array], label: str) -> str | None:
    """Say that the reference itself holds NaN, in which case nothing is known of any layer."""
    if not any(np.isnan(value.astype(np.float64)).any() for value in values):
        return None
    return (
        f"On {label} the reference itself is not finite: it gives NaN, so these inputs tell nothing"
        " of the package."
    )


def _attention_first(
    layers: Sequence[LayerParity], index: int, sources: Sequence[LayerSources]
) -> str:
    """Say what is known where the attention of this layer is the first that differs."""
    layer = layers[index]
    # At least 1: a fingerprint can be wrong at a single token while its mean is within tolerance.
    seen = max(1.0, _attention_share(layer))
    found = f"the attention of layer '{layer.path}' is the first that differs"
    wrong = [layer.path for layer in layers[:index] if layer.wrong]
    if wrong:
        found += f", and the router of layer {_listed(wrong)} before it"
    # Sources are earlier layers, by number, and inputs of the model, by name. Left as suspects are
    # those that no value that clearly agrees is computed from.
    suspects = sources[index].attention - _cleared(layers[:index], sources, seen)
    router_is_right = _router_is_right(layer, seen)
    if router_is_right:
        suspects -= sources[index].router
    earlier = [layers[i].path for i in sorted(i for i in suspects if isinstance(i, int))]
    inputs = sorted(suspect for suspect in suspects if isinstance(suspect, str))
    if router_is_right and not suspects:
        return f"{found}, and its router agrees: the error is in that layer"
    # An input that an earlier layer is computed from, too: that attention is not wrong, but not
    # clearly right either, or the input would be cleared.
    if any(name in sources[i].attention for name in inputs for i in range(index)):
        near = f" of layer {_listed(earlier[-_MOST_LISTED:])}" if earlier else ""
        return (
            f"{found}: the error is in that layer or before it; what agrees{near} is too near to"
            " its tolerance to rule that out"
        )
    if earlier:
        ways = f", or on the way from input {_listed(inputs)}" if inputs else ""
        return (
            f"{found}: the error is behind the attention of layer {_listed(earlier)}, and no later"
            f" than that of layer '{layer.path}'{ways}"
        )
    if inputs:
        return f"{found}: the error is in that layer, or between it and input {_listed(inputs)}"
    return f"{found}: the error is in that layer, or in what it reads"


def _cleared(
    layers: Sequence[LayerParity], sources: Sequence[LayerSources], seen: float
) -> set[LayerSource]:
    """Return the sources of values that agree: an error behind one of these would show in them.

    Args:
        layers: Those that run before the one in question.
        seen: Error over tolerance of what differs.
    """
    cleared: set[LayerSource] = set()
    for layer, source in zip(layers, sources, strict=False):
        if _attention_is_right(layer, seen):
            cleared |= source.attention
        if _router_is_right(layer, seen):
            cleared |= source.router
    return cleared


def _attention_is_right(layer: LayerParity, seen: float) -> bool:
    # Not measured is not right: an attention without a fingerprint acquits nothing.
    known = layer.attention_error is not None and "attention" not in layer.wrong
    return known and CLEARLY * _attention_share(layer) <= seen


def _router_is_right(layer: LayerParity, seen: float) -> bool:
    """Tell whether the scores of the layer's router are known, and clearly those of the
    reference."""
    # Gates are made of the scores, so wrong ones count against the router; how far it is off is
    # measured on the scores.
    known = layer.score_error is not None and not {"scores", "choice", "gates"} & {*layer.wrong}
    return known and CLEARLY * _ratio(layer.score_error, layer.score_tolerance) <= seen


def _routers_alone(layers: Sequence[LayerParity]) -> str:
    """Say what is known where every attention agrees, and every output."""
    routers = [layer for layer in layers if layer.wrong]
    agree = "outputs agree" if _unseen(layers) else "attention and outputs agree"
    first = routers[0]
    before = layers[: _index(layers, first.path)]
    seen = max(1.0, _share(first))
    paths = _listed([router.path for router in routers])
    # A layer before it whose attention is not known does not speak against the router: nothing
    # there was seen to differ.
    if all(_attention_is_right(layer, seen) or layer.attention_error is None for layer in before):
        return f"{agree}: the error is in the router of layer {paths}"
    near = _listed([layer.path for layer in before if not _attention_is_right(layer, seen)])
    return (
        f"{agree}: the router of layer {paths} differs; the error is there or before it, since the"
        f" attention of layer {near} is too near to its tolerance to rule that out"
    )


def _behind(layers: Sequence[LayerParity], outputs: Sequence[OutputParity]) -> str:
    """Say where the error can be if outputs differ, and no attention does that is known."""
    unseen = _unseen(layers)
    wrong = [layer.path for layer in layers if layer.wrong]
    if wrong:
        place = f"no later than the router of layer '{wrong[0]}'"
        earlier = [layer.path for layer in layers[: _index(layers, wrong[0])]]
        # If the layer right before it was compared, it agrees, so the error lies between the two.
        if earlier and earlier[-1] not in unseen:
            return f"the error is behind the attention of layer '{earlier[-1]}', and {place}"
        return f"the error first shows {place}"
    if unseen:
        return (
            "the error is not in what could be compared of the layers; the attention of layer"
            f" {_listed(unseen)} could not be"
        )
    seen = max(max(1.0, _ratio(output.max_abs_error, output.tolerance)) for output in outputs)
    if all(_attention_is_right(layer, seen) for layer in layers):
        return f"the error is behind the attention of the last layer, '{layers[-1].path}'"
    nearest = max(layers, key=_attention_share)
    return (
        "every attention agrees, but not clearly enough to say where the error is; nearest to its"
        f" tolerance is that of layer '{nearest.path}', with {_attention_share(nearest):.0%}"
    )


def _index(layers: Sequence[LayerParity], path: str) -> int:
    return next(index for index, layer in enumerate(layers) if layer.path == path)


def _unseen(layers: Sequence[LayerParity]) -> list[str]:
    """Return the layers whose attention could not be compared."""
    return [layer.path for layer in layers if layer.attention_error is None]


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(f"'{path}'" for path in paths)


def _share(layer: LayerParity) -> float:
    return max(
        _ratio(layer.gate_error, layer.gate_tolerance),
        _ratio(layer.score_error, layer.score_tolerance),
        _attention_share(layer),
    )


def _attention_share(layer: LayerParity) -> float:
    return _ratio(layer.attention_error, layer.attention_tolerance)


def _ratio(error: float | None, limit: float | None) -> float:
    """Return error over tolerance; 0 where either is not known."""
    return error / limit if error and limit else 0.0
