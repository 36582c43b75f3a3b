"""A variant of a model whose weights move at random."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from moh_deploy.ops.op_names import ATTENTION, KERNEL_DOMAIN, base_domain
from moh_deploy.ops.spec import MIN_OPSET, parsed_function
from moh_deploy.system.npz import Array

ROUNDING_STEP = "moh.rounding_step"
"""Input of the variant: how far a weight may move, as a share of it; 0 for not at all."""

DRAWN = "moh.rounding_noise"
"""Input of the variant: where it moves to. Drawn outside: not every runtime does in every opset."""

# A prime: weights that are larger get it again and again, and no two rows of one get the same.
DRAWN_SIZE = 65537

_LARGEST: Mapping[int, float] = {
    TensorProto.FLOAT: 1e8,
    TensorProto.FLOAT16: 65504.0,
    TensorProto.BFLOAT16: 3.38e38,
}
"""The largest number that is a weight: masks are made of larger ones."""

_LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def has_low_weights(graph: onnx.GraphProto) -> bool:
    """Tell whether the graph holds a float16 or bfloat16 weight."""
    return bool(_weights(graph, None))


def add_weight_noise(graph: onnx.GraphProto, names: Collection[str] | None = None) -> bool:
    """Let weights move by up to the share ROUNDING_STEP of each number, and round them again.

    The variant has inputs more: see `weight_noise`.

    Args:
        graph: Changed in place.
        names: The weights, of any float type; None for all that are in float16 or bfloat16.
    """
    # The weight W becomes the initializer W.exact, and nodes make W of it: readers stay as they
    # are. The nodes stand in front of all others, since a graph is sorted.
    weights = _weights(graph, names)
    # The noisy weight takes the name, so the nodes need no change.
    noise = [node for seed, weight in enumerate(weights) for node in _noise(weight, seed)]
    for weight in weights:
        weight.name = _exact(weight.name)
    # Copies, since clearing the field takes the originals along.
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend([*noise, *nodes])
    add_noise_inputs(graph)
    return True


def add_noise_inputs(graph: onnx.GraphProto) -> None:
    """Declare the inputs that say how far operands move, and where to; see `weight_noise`."""
    graph.input.append(helper.make_tensor_value_info(ROUNDING_STEP, TensorProto.FLOAT, []))
    # A row, not a list: shape inference follows every number of a list, which may be a shape.
    graph.input.append(helper.make_tensor_value_info(DRAWN, TensorProto.FLOAT, [1, DRAWN_SIZE]))


def weight_noise(step: float, draw: int) -> dict[str, Array]:
    """Return the inputs that a variant has more.

    Args:
        step: How far a weight may move, as a share of it; 0 for not at all.
        draw: Its number: equal ones move the weights in the same way.
    """
    drawn = np.random.default_rng(draw).uniform(-1.0, 1.0, (1, DRAWN_SIZE))
    return {ROUNDING_STEP: np.asarray(step, np.float32), DRAWN: drawn.astype(np.float32)}


def _weights(graph: onnx.GraphProto, names: Collection[str] | None) -> list[onnx.TensorProto]:
    """Return the weights that move. Single numbers stay: they are constants, not weights."""
    return [
        weight
        for weight in graph.initializer
        if weight.data_type in (_LOW if names is None else _LARGEST)
        and (names is None or weight.name in names)
        and math.prod(weight.dims) > 1
    ]


def _noise(weight: onnx.TensorProto, seed: int) -> Iterator[onnx.NodeProto]:
    """weight * (1 + step * uniform(-1, 1)), rounded to its dtype.

    What masks are made of stays: infinities, and numbers that would become infinite.
    """
    most, size = _LARGEST[weight.data_type], math.prod(weight.dims)
    # Each weight starts at a place of its own in the numbers drawn, 7919 (a prime) behind the last.
    start = seed * 7919 % DRAWN_SIZE
    # As many copies of the row as the weight has numbers for, from its place on.
    rows = -(-(start + size) // DRAWN_SIZE)
    steps = [
        f"least = Constant <value_float = {-most}> () most = Constant <value_float = {most}> ()",
        # finite + infinite = W: only the finite part moves, and inf - inf never arises. What is
        # beyond the limits is split off, and added again at the end as it was.
        f"wide = Cast <to = {TensorProto.FLOAT}> (exact) finite = Clip (wide, least, most)",
        "infinite = Sub (wide, finite)",
        f"times = Constant <value_ints = [1, {rows}]> () enough = Tile (drawn, times)",
        f"start = Constant <value_ints = [{start}]> () axis = Constant <value_ints = [1]> ()",
        f"stop = Constant <value_ints = [{start + size}]> ()",
        "flat = Slice (enough, start, stop, axis)",
        f"dims = Constant <value_ints = {list(weight.dims)}> () draw = Reshape (flat, dims)",
        "share = Mul (draw, step) move = Mul (finite, share) moved = Add (finite, move)",
        "limited = Clip (moved, least, most) noisy = Add (limited, infinite)",
        f"result = Cast <to = {weight.data_type}> (noisy)",
    ]
    return nodes_of(steps, weight.name, {"result": weight.name})


def nodes_of(steps: Sequence[str], name: str, outer: Mapping[str, str]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of steps in the ONNX text format, which may read `step` and `drawn`.

    Args:
        name: Stands before the names that their values get in the graph.
        outer: Other names: of results, and of values that the graph has.
    """
    names = {"step": ROUNDING_STEP, "drawn": DRAWN, **outer}
    for node in parsed_function("Steps () => ()", steps, opset=MIN_OPSET).node:
        for values in (node.input, node.output):
            values[:] = [names.get(value, f"{name}.{value}") for value in values]
        yield node


def _exact(name: str) -> str:
    return f"{name}.exact"


# Variant of a model that rounds the operands of attention's products to bfloat16.
#
# `verify` asks by it how far kernels may be away that multiply bfloat16 (`compute_type`): queries,
# keys, values and the softmax's weights are rounded there, and nothing else. The inputs of the
# variant are those of `weight_noise`: a step of 0 rounds nothing, 1 rounds, and each draw rounds
# elsewhere.

# The weights of the softmax exist within the op alone. Each product of a weight and a value is off
# by the rounding of either, so values that are rounded twice, in two places, stand for both.
_ROUNDINGS = {"query": 1, "key": 1, "value": 2}


def round_operands(graph: onnx.GraphProto) -> bool:
    """Round what the kernels of `MoHAttention` multiply; layers that run dense keep float32.

    Args:
        graph: Changed in place, as are the branches in it. Nodes run as function bodies.
    """
    add_noise_inputs(graph)
    _round_in(graph, iter(range(DRAWN_SIZE)))
    return True


def _round_in(graph: onnx.GraphProto, places: Iterator[int]) -> None:
    # Copies, since clearing the field takes the originals along.
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _round_in(attribute.g, places)
        if node.op_type == ATTENTION and base_domain(node.domain) == KERNEL_DOMAIN:
            for index, (operand, times) in enumerate(_ROUNDINGS.items()):
                name = f"{node.output[0]}.{operand}"
                for number in range(times):
                    rounded = f"{name}.rounded_{number}"
                    graph.node.extend(_rounding(node.input[index], rounded, next(places)))
                    node.input[index] = rounded
        graph.node.append(node)


def _rounding(value: str, output: str, place: int) -> Iterator[onnx.NodeProto]:
    """value + step * (bfloat16(value * s) / s - value), with s drawn from [1/e, e]: each s rounds
    other digits.

    Args:
        place: Of s among the numbers drawn.
    """
    steps = [
        f"place = Constant <value_ints = [{place}]> () number = Gather <axis = 1> (drawn, place)",
        f"s = Exp (number) exact = Cast <to = {TensorProto.FLOAT}> (value)",  # s: [1, 1]
        f"scaled = Mul (exact, s) low = Cast <to = {TensorProto.BFLOAT16}> (scaled)",
        f"again = Cast <to = {TensorProto.FLOAT}> (low) rounded = Div (again, s)",
        "error = Sub (rounded, exact) move = Mul (error, step) moved = Add (exact, move)",
        "result = CastLike (moved, value)",
    ]
    return nodes_of(steps, output, {"value": value, "result": output})
