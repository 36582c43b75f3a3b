"""Choose for every layer by prediction: what an export does."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import onnx
import onnx_ir as ir

from moh_deploy import package as pkg
from moh_deploy.config.dims import size_at
from moh_deploy.graph.layer_nodes import layer_nodes
from moh_deploy.ops import OPS, op_names
from moh_deploy.perf.cost_model.milliseconds import Platform
from moh_deploy.perf.cost_model.prediction import Prediction, predict

# Turn choices at some sizes, measured or predicted, into ranges of sizes.

# About what a choice by size costs in a layer, an If around each of its operators: a gain that is
# smaller does not count.
SWITCH_MS = 0.005


def by_size(
    layer: pkg.LayerInfo, sizes: Sequence[Mapping[str, int]], choices: Sequence[pkg.Choice]
) -> pkg.LayerInfo | None:
    """Return a layer with ranges that give it the choice of each run.

    Args:
        layer: The layer.
        sizes: Dimension sizes of the runs.
        choices: The choice in each.

    Returns:
        The layer, without ranges if all choices are the same; None if no dimension, and no product
        of some, tells the runs apart.
    """
    found = (_by_one(layer, size, sizes, choices) for size in _measures(sizes))
    # Each range is an If around nodes. Of equals the first is kept, so single dimensions win over
    # products, which are harder to read.
    known = [layer for layer in found if layer is not None]
    return min(known, key=lambda item: len(item.ranges), default=None)


def _measures(sizes: Sequence[Mapping[str, int]]) -> Iterator[str]:
    """Yield the sizes that runs differ in: single dimensions first, then products."""
    names = [name for name in sizes[0] if len({size[name] for size in sizes}) > 1]
    # What is compared at run time is a product of dynamic dimensions (ADR 11): `batch*seq` stands
    # for the number of tokens.
    for count in range(1, len(names) + 1):
        yield from map("*".join, combinations(names, count))
    # All runs have the same sizes, so nothing may tell them apart: they must agree on a choice.
    if not names:
        yield ""


def _by_one(
    layer: pkg.LayerInfo,
    size: str,
    sizes: Sequence[Mapping[str, int]],
    choices: Sequence[pkg.Choice],
) -> pkg.LayerInfo | None:
    """Return the layer with a range for each stretch of values of a size that share a choice; None
    where runs of one value disagree.

    Nothing is known between two values: the boundary is their geometric mean.
    """
    steps: dict[int, pkg.Choice] = {}
    for at, choice in zip(sizes, choices, strict=True):
        # The value of `size` in this run, such as 512 for `seq` or 1024 for `batch*seq`.
        value = pkg.measure(size, at) if size else 1
        if steps.setdefault(value, choice) != choice:
            return None
    rising = sorted(steps.items())
    ranges = [
        pkg.SizeRange(size, math.isqrt(low * high), choice)
        for (low, choice), (high, other) in pairwise(rising)
        if choice != other
    ]
    # The choice at the largest value also holds beyond it, and needs no range of its own.
    return pkg.with_ranges(replace(layer, choice=rising[-1][1]), ranges)


def dense_at(
    layer: pkg.LayerInfo, sizes: Sequence[Mapping[str, int]], slower: Sequence[int]
) -> pkg.LayerInfo | None:
    """Return a layer that is dense in some runs, by their numbers, and as it was in the others.

    None if nothing tells them apart.
    """
    choices = [pkg.current_choice(layer, at) for at in sizes]
    # It was not replaced: there is nothing to choose, and it computes every head anyway.
    if None in choices:
        return layer
    return by_size(
        layer,
        sizes,
        ["dense" if i in slower else choice for i, choice in enumerate(choices) if choice],
    )


# Sizes other than the example's, at which another choice may be predicted to be faster.

DimRanges = Mapping[str, tuple[int, int | None]]

# Predictions are made up to so many times the example's size: it is there to be like what will run.
_TIMES = 16


def other_sizes(dims: Mapping[str, int], dim_ranges: DimRanges) -> list[dict[str, int]]:
    """Return the example's sizes, and then those with one dimension at powers of two.

    Args:
        dims: Dimension to the example's size.
        dim_ranges: The smallest and largest size that a dimension may have, where that is limited.
    """
    found = [dict(dims)]
    # One dimension at a time: the product of all would be too many, and the choice mostly changes
    # with one of them.
    for name, example in dims.items():
        smallest, largest = dim_ranges.get(name) or (1, None)
        most = min(largest or _TIMES * example, _TIMES * example)
        powers = (2**exponent for exponent in range(most.bit_length()))
        found += [{**dims, name: size} for size in powers if smallest <= size <= most]
    return found


def at_other_sizes(
    layer: pkg.LayerInfo, node: ir.Node, sizes: Mapping[str, int]
) -> pkg.LayerInfo | None:
    """Return a layer with the sizes that its attention node has where the model's inputs have
    these; None where the node does not tell."""
    if layer.op == op_names.AGGREGATED_ATTENTION:
        return None  # Its shapes do not tell how far its keys are pooled.
    names = [op_input.name for op_input in OPS[node.op_type].inputs]
    # gates [B, S, H]; K [B, T, Hkv*D] or [B, Hkv, T, D].
    gates, keys = (_shape(node.inputs[names.index(name)], sizes) for name in ("gates", "K"))
    if gates is None or keys is None:
        return None
    kv_len = keys[1 if len(keys) == 3 else 2]
    return replace(layer, batch=gates[0], seq_len=gates[1], kv_len=kv_len)


def _shape(value: ir.Value | None, sizes: Mapping[str, int]) -> list[int] | None:
    if value is None or value.shape is None:
        return None
    # A symbolic size may be an expression of one dimension, such as `past+1`. What torch made up,
    # or made of two names, is not known.
    named = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    dims = [size_at(dim, sizes) for dim in named]
    known = [dim for dim in dims if dim is not None]
    # One unknown size makes the shape unknown: a prediction would be of another layer.
    return known if len(known) == len(dims) else None


# At other sizes than the example's, a choice of its own has to be predicted to save this share, and
# more than an If around each of a layer's three operators costs at most (ADR 11).
_WORTH, _WORTH_MS = 0.05, 0.03


def first_choices(
    model: ir.Model,
    layers: Sequence[pkg.LayerInfo],
    *,
    platform: Platform,
    dims: Mapping[str, int],
    dim_ranges: DimRanges,
) -> tuple[pkg.LayerInfo, ...]:
    """Return the layers with the choice that is predicted to be the fastest.

    At sizes at which another one is predicted to be clearly faster, a layer has that. A layer that
    nothing is predicted for runs on kernels as far as it can.

    Args:
        model: Its nodes tell what the layers do.
        layers: The layers.
        platform: What runs them.
        dims: Dynamic dimension to the example's size.
        dim_ranges: Dynamic dimension to the sizes that it may have, where that is limited.
    """
    # Shapes are read from the IR, where they may be symbolic; attributes from the ONNX form, which
    # `layer_nodes` reads in finished packages too.
    attention = {node.name: node for node in model.graph if node.name}
    sizes = other_sizes(dims, dim_ranges)
    chosen = []
    for layer, nodes in zip(layers, layer_nodes(_graph_of(model, layers), layers), strict=True):
        found = predict(layer, nodes, platform)
        if found is None:
            # The last choice is the one with the most kernels: what MoH is for, if nothing speaks
            # against it.
            last = (pkg.choices_for(layer) or (None,))[-1]
            chosen.append(replace(layer, choice=last, ranges=()))
            continue
        best = found.best
        layer = replace(layer, choice=best, ranges=())
        choices = [best]
        node = attention.get(layer.node or "")
        for at in sizes[1:]:
            sized = None if node is None else at_other_sizes(layer, node, at)
            there = sized and predict(sized, nodes, platform)
            choices.append(_clearly_best(there, otherwise=best) if there else best)
        # Where no size tells the choices apart, the example decides: it is there to be like what
        # will run.
        chosen.append(by_size(layer, sizes, choices) or layer)
    return tuple(chosen)


def _clearly_best(found: Prediction, *, otherwise: pkg.Choice) -> pkg.Choice:
    """Return the choice that is predicted to be clearly faster than another; else that one."""
    ms, other_ms = found.ms[found.best], found.ms[otherwise]
    # Both bounds: a share, as predictions err by some percent, and a time, as an If costs the same
    # in a layer of any size.
    worth = other_ms - ms > max(_WORTH * other_ms, _WORTH_MS)
    return found.best if worth else otherwise


def _graph_of(model: ir.Model, layers: Sequence[pkg.LayerInfo]) -> onnx.GraphProto:
    """Return the layers' nodes and the shapes of their constants, without any data."""
    names = {name for layer in layers for name in (layer.node, *pkg.projections(layer))}
    nodes = [node for node in model.graph if node.name in names]
    constants = {
        value.name: value.const_value.shape.numpy()
        for node in nodes
        for value in node.inputs
        if value is not None and value.const_value is not None
    }
    # `layer_nodes` asks for names, attributes and the sizes of weights only. Weights themselves may
    # be gigabytes, and are not serialised.
    return onnx.GraphProto(
        node=[ir.serde.serialize_node(node) for node in nodes],
        initializer=[onnx.TensorProto(name=name, dims=dims) for name, dims in constants.items()],
    )
