"""Decide which operators compute in float32 although the model is to be in a lower precision."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx
import onnx_ir as ir

from moh_deploy.ops import is_moh_op, op_names
from moh_deploy.ops.routers import SCORING

LowType = Literal["float16", "bfloat16"]

_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38}

# How much larger than recorded a value may get before it leaves the range of float16.
_HEADROOM = 4.0

_COUNTS = "it counts"

_REASONS = {
    "scores, softmax, top-k and gates of a router": (op_names.ROUTER,),
    "softmax": ("Softmax", "LogSoftmax", "Hardmax"),
    "normalisation": (
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization"),
        *("LpNormalization", "MeanVarianceNormalization"),
    ),
    "sums of many terms": (
        *("CumSum", "GlobalAveragePool", "AveragePool", "ReduceL1", "ReduceL2", "ReduceLogSum"),
        *("ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
    ),
    "small differences grow in it": ("Exp", "Log", "Pow", "Reciprocal", "Sqrt"),
    "it decides, and rounding decides otherwise": (
        *("ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less"),
        *("LessOrEqual", "NonZero", "Round", "TopK"),
    ),
}

STAYS_FLOAT32 = {operator: reason for reason, named in _REASONS.items() for operator in named}
"""Operator to the reason why it stays in float32.

LayerNormalization and RMSNormalization are not here: whatever their types, they compute in float32
(`stash_type`).
"""

_ANGLES = ("Sin", "Cos")
"""Whatever an angle is made of stays in float32: positions and time steps are large numbers whose
fractions count."""

_NORMS = ("LayerNormalization", "RMSNormalization")

_PRODUCTS = (
    *("Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"),
    *_NORMS,
)
"""They take float16 or bfloat16 from whatever made it, and accumulate in float32."""

# What comes from no activation has no say in what its readers compute in.
SOURCES = ("Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform", "Range")


@dataclass(frozen=True)
class PrecisionPlan:
    """The dtype that each operator of a graph computes in."""

    low: LowType  # the dtype of all that is not named below
    float32: Mapping[ir.Node, str]  # the nodes that compute in float32, with the reason

    def stays_float32(self, node: ir.Node) -> bool:
        return node in self.float32


def largest_number(low: LowType) -> float:
    """Return the largest finite number of a dtype."""
    return _LARGEST[low]


def largest_allowed(low: LowType) -> float:
    """Return the largest recorded value for which an operator may run in this dtype."""
    return _LARGEST[low] / _HEADROOM


def plan_precision(
    model: ir.Model, low: LowType, largest: Mapping[str, float], *, gates: frozenset[str]
) -> PrecisionPlan:
    """Decide what each operator of the graph computes in.

    An operator stays in float32 if the table above says so, if a value that it reads or makes was
    recorded to be too large, if it helps to make an angle or a gate, or if it only rearranges or
    combines, element by element, what such an operator made.

    Args:
        model: All floats are float32.
        low: What the rest computes in.
        largest: Value name to the largest absolute number that was recorded in it; infinities do
            not count, they are the same in every dtype.
        gates: Names of the layers' gates.
    """
    # In execution order: whether a node follows one in float32 is known when it is met. Products
    # end that: they take float16 from whatever made it, and the cast costs less than the product.
    limit = largest_allowed(low)
    # With all that leads to them: in bfloat16 a position of 4000 is a multiple of 16, which is more
    # than two turns of the fastest angle.
    angles = _ancestors(node for node in model.graph if node.op_type in _ANGLES)
    routers = [node for node in model.graph if node.op_type == op_names.ROUTER]
    # Sigmoid, division by a temperature and the like between the logits and the router.
    scores = _ancestors(routers, through=SCORING) - set(routers)
    # Where it has eight digits in binary, what every layer adds to and every router reads is worth
    # more than what is saved by rounding it: a third of the time of a norm, and half the flips.
    # The stream is the additions `x + f(x)` with a product in f.
    adds = (node for node in model.graph if node.op_type == "Add" and low == "bfloat16")
    stream = {node for node in adds if _adds_to_itself(node)}
    logits = _makers_of_logits(routers) if low == "bfloat16" else set()
    float32: dict[ir.Node, str] = {}
    forced: set[ir.Node] = set()
    # In execution order: what follows a node in float32 is decided after it.
    for node in model.graph:
        reason = (
            # From reasons that hold for the operator to those of its numbers.
            _own_reason(node, angles, gates)
            or ("a router ranks what is made of it" if node in scores | logits else None)
            or ("the residual stream" if node in stream else None)
            or (
                "a norm of the residual stream"
                if node.op_type in _NORMS and _follows(node, stream)
                else None
            )
            or _undefined(node, model.opset_imports, low)
            or _overflow(node, largest, limit)
        )
        # An operator between two in float32 would cast down and up again for nothing. Products end
        # it: there is the work that lower precision saves.
        if reason is None and not _is_product(node) and _follows(node, forced):
            reason = "it follows one that is in float32"
        # In float32, and without drawing its readers along.
        if reason is None and node.op_type in SOURCES:
            float32[node] = "it depends on no activation"
        if reason is not None:
            float32[node] = reason
            forced.add(node)
    return PrecisionPlan(low, float32)


def _own_reason(node: ir.Node, angles: set[ir.Node], gates: frozenset[str]) -> str | None:
    if node in angles:
        return "an angle is made of it"
    if _is_moh(node):
        return STAYS_FLOAT32.get(node.op_type)
    # Gates decide which heads run: rounding could make 0 of a small one, or another choice.
    if any(value.name in gates for value in node.outputs):
        return "gates"
    # Casts are put into the main graph only.
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return "it holds a graph of its own"
    if node.domain not in ("", "ai.onnx"):
        return f"an operator of domain {node.domain}, which nothing is known of"
    # A Cast from integers: indices and lengths beyond 2048 are not exact in float16.
    if node.op_type == "Cast" and _is_integer(node.inputs[0]):
        return _COUNTS
    return STAYS_FLOAT32.get(node.op_type)


def _undefined(node: ir.Node, opsets: Mapping[str, int], low: LowType) -> str | None:
    """ONNX does not define every operator for every dtype: Conv knows bfloat16 since opset 22."""
    # What makes numbers of nothing is not lowered whatever it is defined for.
    if _is_moh(node) or node.op_type in SOURCES:
        return None
    version = opsets[node.domain]
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    # Of inputs that take float32 all that are lowered have to take the low dtype, and so does the
    # result; others behind it are statistics.
    lowered = [formal for index, formal in enumerate(schema.inputs) if is_lowered(node, index)]
    types = [formal.types for formal in (*lowered, *schema.outputs[:1])]
    if any("tensor(float)" in type_ and f"tensor({low})" not in type_ for type_ in types):
        return f"ONNX defines {node.op_type} for no {low} in opset {version}"
    return None


def _overflow(node: ir.Node, largest: Mapping[str, float], limit: float) -> str | None:
    exempt = [value for i, value in enumerate(node.inputs) if not is_lowered(node, i)]
    for value in (*node.inputs, *node.outputs):
        # A mask of -1e9 may stay in float32 while its node computes in float16.
        if value is None or value.name is None or value in exempt:
            continue
        recorded = largest.get(value.name, 0.0)
        if recorded > limit:
            return f"{value.name} reached {recorded:.3g}"
    return None


def is_lowered(node: ir.Node, index: int) -> bool:
    """Tell whether an input takes part in the node's precision; others keep the dtype they have."""
    # A mask, lengths, sizes and scales, a ratio: not what is computed with.
    own_dtype = {op_names.ATTENTION: (4, 5), "Resize": (1, 2), "Upsample": (1,), "Dropout": (1,)}
    return index not in own_dtype.get(node.op_type, ())


def _follows(node: ir.Node, forced: set[ir.Node]) -> bool:
    # One is enough: both operands of an Add have to be of one dtype.
    producers = (value.producer() for value in _floats(node.inputs))
    return any(producer in forced for producer in producers if producer is not None)


def _is_product(node: ir.Node) -> bool:
    return node.op_type in _PRODUCTS or _is_moh(node)


def _is_moh(node: ir.Node) -> bool:
    return is_moh_op(node.domain, node.op_type)


def _is_integer(value: ir.Value | None) -> bool:
    dtype = None if value is None else value.dtype
    return dtype is not None and dtype != ir.DataType.BOOL and dtype.is_integer()


def _floats(values: Iterable[ir.Value | None]) -> Iterator[ir.Value]:
    for value in values:
        if value is not None and value.dtype == ir.DataType.FLOAT:
            yield value


def _makers_of_logits(routers: Sequence[ir.Node]) -> set[ir.Node]:
    """Return the products that make the logits of routers, and what lies between."""
    found: set[ir.Node] = set()
    waiting = list(routers)
    while waiting:
        for value in _floats(waiting.pop().inputs):
            maker = value.producer()
            if maker is None or maker in found or _is_moh(maker):
                continue
            found.add(maker)
            if not _is_product(maker) or maker.op_type in _NORMS:
                waiting.append(maker)
    return found


def _adds_to_itself(node: ir.Node) -> bool:
    """Tell whether one operand is made of the other by way of a product."""
    values = list(_floats(node.inputs))
    if len(values) != 2 or None in (values[0].producer(), values[1].producer()):
        return False
    return _is_made_of(values[0], values[1]) or _is_made_of(values[1], values[0])


def _is_made_of(value: ir.Value, of: ir.Value) -> bool:
    """Tell whether a value is made of another one by way of a product."""
    seen: set[tuple[ir.Value, bool]] = set()
    waiting = [(value, False)]
    while waiting:
        name, behind_product = waiting.pop()
        if name is of and behind_product:
            return True
        maker = name.producer()
        if maker is None or (name, behind_product) in seen:
            continue
        seen.add((name, behind_product))
        behind = behind_product or (_is_product(maker) and maker.op_type not in _NORMS)
        waiting += [(value, behind) for value in _floats(maker.inputs)]
    return False


def _ancestors(nodes: Iterable[ir.Node], through: Collection[str] | None = None) -> set[ir.Node]:
    """Return the nodes and all that makes their floats, or what of it is of these operators."""
    found: set[ir.Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            producers = (value.producer() for value in _floats(node.inputs))
            waiting += [
                producer
                for producer in producers
                if producer is not None and (through is None or producer.op_type in through)
            ]
    return found
