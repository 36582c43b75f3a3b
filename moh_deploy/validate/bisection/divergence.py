"""Compare the inner values of two graphs, and find the first node at which they part."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moh_deploy.package import MASKS_BEYOND, VectorSet
from moh_deploy.package.graph_nodes import reads
from moh_deploy.report.report import FLAT, HIDDEN
from moh_deploy.system.npz import BFLOAT16, Array, BoolArray
from moh_deploy.validate.bisection.places import ForcedModel, ModelGraph, NodePlace
from moh_deploy.validate.reference.differences import abs_error, largest, largest_finite
from moh_deploy.validate.reference.samples import own_masks
from moh_deploy.validate.reference.valid_tokens import ValidTokens, inner_places

_FIRST = 64
"""Values that are fetched in the first pair of runs; their size decides on the next ones."""

_MOST_BYTES = 256 << 20
"""What the values of one run may take, as far as the first ones tell."""


@dataclass(frozen=True)
class InnerValue:
    """One value, over all vector sets."""

    name: str  # its name in both graphs
    error: float  # largest absolute difference; infinite where one is not finite and the other is
    size: float  # largest absolute finite value of the reference
    shape: tuple[int, ...]  # in the first vector set
    finite: bool  # wherever the reference is finite, the other is
    is_float: bool = True  # it can be off by rounding


def compare_values(
    tested: ForcedModel, reference: ForcedModel, names: Sequence[str], vectors: Sequence[VectorSet]
) -> dict[str, InnerValue]:
    """Run both with these values as extra outputs.

    Args:
        tested: Runs with the gates fed to it, as does the reference.
        reference: What is believed.
        names: Values of both; what is no number is left out of the result.
        vectors: What to run.
    """
    found: dict[str, InnerValue] = {}
    # What padding makes of rounding, or of NaN, is no fault of any node.
    manifest, dims = tested.package.manifest, tested.value_dims()
    masks = own_masks(manifest, vectors, [str(index) for index in range(len(vectors))])
    valid: Sequence[ValidTokens | None] = masks or [None] * len(vectors)
    # All values at once would not fit into memory: [B, H, S, S] scores of every layer, say.
    for chunk in _chunks(names, found):
        # Each chunk needs new sessions, since a session's outputs are fixed when it is opened.
        runners = tested.open(chunk), reference.open(chunk)
        for vector_set, tokens in zip(vectors, valid, strict=True):
            got = runners[0].run(tested.inputs(vector_set))
            expected = runners[1].run(reference.inputs(vector_set))
            for name in chunk:
                # Text cannot be compared.
                if not all(
                    _is_float(x[name]) or x[name].dtype.kind in "biu" for x in (got, expected)
                ):
                    continue
                counted = None
                if tokens is not None and name in dims:
                    counted = inner_places(tokens, dims[name], expected[name].shape)
                value = _compared(name, got[name], expected[name], counted)
                known = found.get(name, value)
                found[name] = replace(
                    known,
                    error=max(value.error, known.error),
                    size=max(value.size, known.size),
                    finite=value.finite and known.finite,
                )
    return found


def _chunks(names: Sequence[str], found: Mapping[str, InnerValue]) -> Iterator[Sequence[str]]:
    """Yield the names in parts, as large as the values found so far let memory hold."""
    start, size = 0, _FIRST
    while start < len(names):
        yield names[start : start + size]
        start += size
        # Eight bytes each: values are compared in float64.
        sizes = [8 * math.prod(value.shape) for value in found.values()]
        mean = sum(sizes) / max(len(sizes), 1)
        # More names mean fewer sessions; 1024 bounds what a bad guess of sizes can cost.
        size = max(_FIRST, min(1024, int(_MOST_BYTES / max(mean, 1.0))))


def _compared(
    name: str, got: Array, expected: Array, counted: BoolArray | None = None
) -> InnerValue:
    is_float = _is_float(got) or _is_float(expected)
    # Booleans have no difference in numpy.
    got, expected = (
        array.astype(np.int8) if array.dtype == bool else array for array in (got, expected)
    )
    shape = expected.shape
    if counted is not None and got.shape == shape:
        got, expected = got[counted], expected[counted]
    size = largest_finite(expected)
    # The shape of the reference is kept; finite, since no number can be looked at.
    if got.shape != expected.shape:
        return InnerValue(name, math.inf, size, shape, True, is_float)
    # float32 has -1e9 or the like where float16 has -inf: both switch a key off.
    masked = np.isinf(got) & (np.sign(got) == np.sign(expected)) & (np.abs(expected) > MASKS_BEYOND)
    # Both NaN: whatever it means, neither is further off.
    same = masked | (np.isnan(got) & np.isnan(expected))
    worst = largest(np.where(same, 0.0, abs_error(got, expected)))
    finite = bool((np.isfinite(got) | masked | ~np.isfinite(expected)).all())
    worst = math.inf if math.isnan(worst) else worst
    return InnerValue(name, worst, size, shape, finite, is_float)


def _is_float(array: Array) -> bool:
    return array.dtype == BFLOAT16 or np.issubdtype(array.dtype, np.floating)


SAME_PRECISION = 1e-5
"""Of two runs in float32, what one node may make of rounding: as the bound of a near-tie."""

# Terms may cancel: a tiny result is off by what its terms are off, so it is measured by them.
_SUMS = ("Add", "Sub", "Sum")


@dataclass(frozen=True)
class NodeError:
    """The error of a node's result, beside that of the values it reads."""

    place: NodePlace = field(metadata=FLAT)  # the node
    # The largest error of the values that it reads, as a share of their largest value.
    before: float
    # The error of its result as a share of its largest value (for sums, of the terms'). Infinite
    # where it is not finite and the reference is.
    behind: float
    # Largest absolute value of its result in the reference; for sums, of the terms too.
    size: float = field(metadata=HIDDEN)
    finite: bool = field(metadata=HIDDEN)  # its result is finite wherever the reference is

    @property
    def growth(self) -> float:
        """The error that the node itself adds; 0 where the values it reads are not finite."""
        return 0.0 if math.isinf(self.before) else max(self.behind - self.before, 0.0)


def node_errors(graph: ModelGraph, values: Mapping[str, InnerValue]) -> dict[int, NodeError]:
    """Return the error of each node whose result was compared, by its place in the graph.

    A float that has another name in each graph is known by its cast. Integers have an error only
    where all that the node reads is the same: else rounding may have decided otherwise.
    """
    casts = [(node.input[0], node.output[0]) for node in graph.nodes if node.op_type == "Cast"]
    by_casts = {
        read: values[made]
        for read, made in casts
        if read in graph.makers and read not in values and made in values and values[made].is_float
    }
    values = {**values, **by_casts}
    found: dict[int, NodeError] = {}
    for index, node in enumerate(graph.nodes[: graph.own]):
        if node.op_type == "Cast" and node.input[0] in by_casts:
            continue  # its result stands for what it reads
        outside = set(reads(node)).difference(node.output)  # a branch may call its result the same
        read = [values[name] for name in outside if name in values]
        # Integers are decisions: they differ by rounding as soon as anything read does.
        is_same = not any(value.error for value in read)
        known = [values[name] for name in node.output if name in values]
        made = [value for value in known if value.is_float or is_same]
        if not made:
            continue
        scale = max((value.size for value in read), default=0.0) if node.op_type in _SUMS else 0.0
        found[index] = NodeError(
            graph.place(index),
            max((_share(value) for value in read), default=0.0),
            max(_share(value, scale) for value in made),
            max(scale, *(value.size for value in made)),
            all(value.finite for value in made),
        )
    return found


def first_beyond(
    errors: Mapping[int, NodeError], bound: float, among: Collection[int]
) -> NodeError | None:
    """Return the first node, in execution order, whose result is not finite and should be, or else
    is off by more than a bound.

    Args:
        errors: By place in the graph.
        bound: As a share of the largest value.
        among: Places that count.
    """
    counted = [errors[index] for index in sorted(errors) if index in among]
    # Infinity spreads, so the first node that makes it comes before any that is only inaccurate.
    broken = (error for error in counted if not error.finite)
    return next(broken, None) or next((error for error in counted if error.behind > bound), None)


def largest_step(errors: Mapping[int, NodeError], among: Collection[int]) -> NodeError | None:
    """Return the node that adds most; None if none is known to add anything."""
    counted = [errors[index] for index in sorted(errors) if index in among]
    # Nothing is beyond rounding, so the answer is the node that adds most, as a hint.
    largest = max(counted, key=lambda item: item.growth, default=None)
    return largest if largest is not None and largest.growth else None


def _share(value: InnerValue, scale: float = 0.0) -> float:
    size = max(value.size, scale)
    # All zeros in the reference: any error at all is infinitely large beside them.
    return value.error / size if size else math.inf if value.error else 0.0
