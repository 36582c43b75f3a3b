"""A variant of a model whose weights move at random."""

import math
from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper

from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from moh_deploy.system.npz import Array

ROUNDING_STEP = "moh.rounding_step"
"""Input of the variant: how far a weight may move, as a share of it; 0 for not at all."""

DRAWN = "moh.rounding_noise"
"""Input of the variant: where it moves to. Drawn outside: not every runtime does in every opset."""

# A prime: weights that are larger get it again and again, and no two rows of one get the same.
DRAWN_SIZE = 65537

_LARGEST = {TensorProto.FLOAT: 1e8, TensorProto.FLOAT16: 65504.0, TensorProto.BFLOAT16: 3.38e38}
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
    for dtype, largest in _LARGEST.items():
        for name, limit in zip(_limits(dtype), (-largest, largest), strict=True):
            graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [limit]))
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
    # finite + infinite = W: only the finite part moves, and inf - inf never arises.
    name, limits = weight.name, _limits(weight.data_type)
    yield helper.make_node("Cast", [_exact(name)], [f"{name}.wide"], to=TensorProto.FLOAT)
    # What is beyond the limits is split off, and added again at the end as it was.
    yield _node("Clip", name, "wide", *limits, output="finite")
    yield _node("Sub", name, "wide", f"{name}.finite", output="infinite")
    yield from _drawn(weight, seed)
    yield _node("Mul", name, "draw", ROUNDING_STEP, output="share")
    yield _node("Mul", name, "finite", f"{name}.share", output="move")
    yield _node("Add", name, "finite", f"{name}.move", output="moved")
    yield _node("Clip", name, "moved", *limits, output="limited")
    yield _node("Add", name, "limited", f"{name}.infinite", output="noisy")
    yield helper.make_node("Cast", [f"{name}.noisy"], [name], to=weight.data_type)


def _drawn(weight: onnx.TensorProto, seed: int) -> Iterator[onnx.NodeProto]:
    """Numbers of DRAWN in the shape of the weight, from a place of its own on."""
    # Each weight starts at a place of its own in the numbers drawn, 7919 (a prime) behind the last.
    name, size = weight.name, math.prod(weight.dims)
    # Another prime: weights begin at places of their own in the drawn row.
    start = seed * 7919 % DRAWN_SIZE
    for part, numbers in {
        # As many copies of the row as the weight has numbers for, from its place on.
        "times": [1, -(-(start + size) // DRAWN_SIZE)],
        "start": [start],
        "stop": [start + size],
        "axis": [1],
        "dims": list(weight.dims),
    }.items():
        value = helper.make_tensor(part, TensorProto.INT64, [len(numbers)], numbers)
        yield helper.make_node("Constant", [], [f"{name}.{part}"], value=value)
    yield helper.make_node("Tile", [DRAWN, f"{name}.times"], [f"{name}.enough"])
    places = (f"{name}.{part}" for part in ("start", "stop", "axis"))
    yield _node("Slice", name, "enough", *places, output="flat")
    yield _node("Reshape", name, "flat", f"{name}.dims", output="draw")


def _node(op: str, name: str, part: str, *others: str, output: str) -> onnx.NodeProto:
    return helper.make_node(op, [f"{name}.{part}", *others], [f"{name}.{output}"])


def _limits(dtype: int) -> tuple[str, str]:
    kind = TensorProto.DataType.Name(dtype).lower()
    return f"moh.smallest_{kind}", f"moh.largest_{kind}"


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
        if node.op_type == "MoHAttention" and base_domain(node.domain) == KERNEL_DOMAIN:
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
    index = helper.make_tensor("place", TensorProto.INT64, [1], [place])
    yield helper.make_node("Constant", [], [f"{output}.place"], value=index)
    yield helper.make_node("Gather", [DRAWN, f"{output}.place"], [f"{output}.drawn"], axis=1)
    yield helper.make_node("Exp", [f"{output}.drawn"], [f"{output}.s"])  # [1, 1]
    low, wide = TensorProto.BFLOAT16, TensorProto.FLOAT
    yield helper.make_node("Cast", [value], [f"{output}.exact"], to=wide)
    yield helper.make_node("Mul", [f"{output}.exact", f"{output}.s"], [f"{output}.scaled"])
    yield helper.make_node("Cast", [f"{output}.scaled"], [f"{output}.low"], to=low)
    yield helper.make_node("Cast", [f"{output}.low"], [f"{output}.again"], to=wide)
    yield helper.make_node("Div", [f"{output}.again", f"{output}.s"], [f"{output}.rounded"])
    yield helper.make_node("Sub", [f"{output}.rounded", f"{output}.exact"], [f"{output}.error"])
    yield helper.make_node("Mul", [f"{output}.error", ROUNDING_STEP], [f"{output}.move"])
    yield helper.make_node("Add", [f"{output}.exact", f"{output}.move"], [f"{output}.moved"])
    yield helper.make_node("CastLike", [f"{output}.moved", value], [output])
