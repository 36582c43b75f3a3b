"""Run a part of a router on its own, on logits that were made up."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx import graph
from moh_deploy.frontend.fx.axes import Size
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.routers.router import ends_router

# Logits of these scales make flat, ordinary and saturated softmaxes.
SCALES = (0.05, 1.0, 8.0)

# Of this scale they are so close that a bias of 0.001 changes their order.
_CLOSE = 1e-4

Values = dict[Node, torch.Tensor]


@dataclass(frozen=True)
class RouterRun:
    """A run of a router on logits of several scales."""

    gates: Node  # the node that they are [..., H]
    nodes: tuple[Node, ...]  # what was computed, what it was computed from first
    values: tuple[Values, ...]  # of each scale; float64 where the router takes it
    close: Values  # of logits so close to one another that a small bias changes their order
    tolerance: float  # by how much what computes the same may differ

    def kept(self, candidates: int, top_k: int) -> int:
        """Return how many of the last heads are open, where that is a number below `top_k` that is
        the same for all tokens; else `top_k`."""
        # Shared heads stand in front of the routed ones, as a MoHRouter has them.
        counts = set(self._is_open[:, -candidates:].sum(-1).tolist())
        return min([top_k, *counts]) if len(counts) == 1 and 0 not in counts else top_k

    def always_open(self, candidates: int) -> int:
        """Return how many heads no token closes, of those that are more than the candidates."""
        return min(int(self._is_open.all(0).sum()), self._is_open.shape[-1] - candidates)

    def closes_only_first(self, candidates: int, top_k: int) -> bool:
        """Tell whether the candidates are the first heads, and no token closes the others, which
        stand behind them."""
        chosen = self._is_open[:, :candidates].sum(-1)
        return bool(self._is_open[:, candidates:].all()) and bool((chosen == top_k).all())

    @cached_property
    def _is_open(self) -> torch.Tensor:
        """[rows, H]: which heads each token opens."""
        return torch.cat([values[self.gates].flatten(0, -2) for values in self.values]) != 0


def run_router(
    gates: Node, cone: Sequence[Node], scores: Node, constant: Constants
) -> RouterRun | None:
    """Run a router on whatever of it is farthest from its gates and still decides them alone.

    Returns:
        None where it cannot be run on its own.
    """
    # As far back as possible, because weights may be made of what lies before the ranked scores,
    # such as the logits of a softmax; but no farther than one tensor still decides the gates. Else
    # from the results of its projections.
    members, ranked = set(cone), set(graph.ancestors(scores))
    numbers = [
        node
        for node in gates.graph.nodes  # what is computed first is farthest
        if node in members and node.op == "call_function" and is_number(node)
    ]
    single = ([node] for node in numbers if node in ranked)
    for sources in itertools.chain(single, [list(filter(ends_router, numbers))]):
        between = nodes_between(gates, set(sources), members, constant) if sources else None
        if between is not None:
            break
    else:
        return None
    values, is_exact = run_part(sources, between, constant, (*SCALES, _CLOSE))
    if not values:
        return None
    tolerance = 1e-9 if is_exact else 1e-5
    return RouterRun(gates, (*sources, *between), values[:-1], values[-1], tolerance)


def run_part(
    inputs: Sequence[Node],
    between: Sequence[Node],
    constant: Constants,
    scales: Sequence[float] = SCALES,
) -> tuple[tuple[Values, ...], bool]:
    """Run nodes on made-up inputs of each scale: in float64, to tell small deviations apart;
    routers that insist on float32 run in that.

    Returns:
        The values, none where the nodes cannot be run on their own, and whether nothing was rounded
        to fewer bits than those of float64.
    """
    for dtype in (torch.float64, torch.float32):
        values: list[Values] = []
        for scale in scales:
            # Of the example's sizes, and the same in every call.
            generator = torch.Generator().manual_seed(0)
            made = {
                node: torch.randn(graph.example_shape(node), generator=generator, dtype=dtype)
                * scale
                for node in inputs
            }
            run = run_nodes(between, made, constant)
            values += [] if run is None else [run]
        if len(values) == len(scales):
            # Some nodes bring their result to a dtype of their own, whatever they are given.
            rounded = any(
                graph.op(node) in ("to", "to_copy", "type_as")
                or (
                    graph.op(node) in ("softmax", "sum", "cumsum", "prod")
                    and graph.argument(node, "dtype")
                )
                for node in between
            )
            return tuple(values), dtype == torch.float64 and not rounded
    return (), False


def is_number(node: Node) -> bool:
    """True for a tensor of a floating-point dtype."""
    return graph.is_tensor(node) and graph.tensor(node).is_floating_point()


def nodes_between(
    result: Node, inputs: set[Node], cone: set[Node], constant: Constants
) -> list[Node] | None:
    """Return the nodes from inputs to gates, in order; None if those depend on more than each
    token's own inputs.

    Args:
        cone: What may stand between them.
    """
    # Backwards from the result. Whatever is read for its shape alone needs no value; whatever is
    # neither an input, nor a constant, nor of the router makes the part depend on more.
    found, stack = {result}, [result]
    while stack:
        node = stack.pop()
        if node in inputs or constant(node) is not None:
            continue
        if node not in cone or node.op != "call_function":
            return None
        for source in () if graph.reads_shape_only(node) else node.all_input_nodes:
            makes_tuple = isinstance(source.meta.get("val"), (tuple, list))
            if source not in found and (graph.is_tensor(source) or makes_tuple):
                found.add(source)
                stack.append(source)
    if not routes_alike(result, found - inputs, inputs):
        return None
    return [
        node
        for node in result.graph.nodes
        if node in found and node not in inputs and node.op == "call_function"
    ]


def run_nodes(nodes: Sequence[Node], inputs: Values, constant: Constants) -> Values | None:
    """Return what the nodes make of the inputs, at the example's sizes; None where they cannot be
    run on their own."""
    # An interpreter of a few nodes: sizes come from the example, numbers from `inputs`.
    env: dict[Node, object] = dict(inputs)

    def look_up(node: Node) -> object:
        if node in env:
            return env[node]
        stored = constant(node)
        if stored is not None:
            return stored
        if not graph.is_tensor(node):
            return graph.hint(node.meta["val"])
        # Stands for a tensor that is read for its shape only.
        return torch.empty(graph.example_shape(node), dtype=graph.tensor(node).dtype)

    try:
        with torch.no_grad():
            for node in nodes:
                env[node] = graph.computed(node, look_up)
    except (RuntimeError, IndexError, TypeError, ValueError):
        return None
    return {node: value for node, value in env.items() if isinstance(value, torch.Tensor)}


# A router may do something else at other sizes than in a trial, which has the example's.

_RANGES = frozenset(("arange", "linspace", "slice", "scalar_tensor"))
_CUTS = frozenset(("slice", "narrow", "topk"))
_SCANS = ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
_SUMS = ("sum", "mean", "prod", "any", "all", "amax", "amin", "max", "min", "argmax", "argmin")
_RANKS = ("topk", "sort", "argsort", "kthvalue", "median")
_ALONG = frozenset(
    (*_SCANS, *_SUMS, *_RANKS, "var", "std", "logsumexp", "softmax", "log_softmax", "count_nonzero")
    + ("scatter_add", "scatter_reduce", "index_add", "index_reduce")
)
_BY_ROW = frozenset(
    ("gather", "scatter", "index", "index_put", "index_select", "take_along_dim", "scatter_add")
)


def routes_alike(result: Node, members: Collection[Node], inputs: Collection[Node]) -> bool:
    """Tell whether a token's gates hang on nothing but the token: neither on where it stands, nor
    on how many there are, nor on what others chose. A capacity of 64 tokens a head, or positions
    from 512 on, would not be seen in a trial of 16 tokens.

    Args:
        result: The gates [..., H].
        members: What computes them from the inputs.
    """
    heads = graph.example_shape(result)[-1]
    decided, positions = set(inputs), set[Node]()
    for node in result.graph.nodes:
        if node not in members or node.op != "call_function":
            continue
        sources = set() if graph.reads_shape_only(node) else set(node.all_input_nodes)
        if sources & decided:
            decided.add(node)
            # Positions, or a size as a number, change what it makes of scores. Whole numbers may
            # say where it reads or writes: a wrong row would be seen at every size.
            known = sources & positions
            if known or _reads_number(node):
                names_rows = graph.op(node) in _BY_ROW or _is_whole(node)
                if not names_rows or not all(map(_is_whole, known)):
                    return False
            # A size says how many of the heads are kept.
            if graph.op(node) in _CUTS and _reads_size(node):
                dim = cast(int, graph.argument(node, "dim", -1))
                if graph.shape(cast(Node, node.args[0]))[dim].is_Integer:
                    return False
            # Tokens decide about one another: there are more of what is summed, counted or ranked
            # than heads.
            if any(not size.is_Integer or size > heads for size in _summed_sizes(node)):
                return False
        elif sources & positions or _counts(node):
            positions.add(node)
    return result not in positions


def _counts(node: Node) -> bool:
    """True for what begins to tell positions: a range or a part of a table as long as a size of the
    model's inputs, a number that is one, or a sum of so many."""
    if graph.op(node) in _RANGES and _reads_size(node):
        return True
    is_filled = graph.op(node) in ("full", "full_like", "new_full")
    if is_filled and isinstance(graph.argument(node, "fill_value"), Node):
        return True
    return _reads_number(node) or any(not size.is_Integer for size in _summed_sizes(node))


def _summed_sizes(node: Node) -> Iterator[Size]:
    """Yield the sizes of the dimensions along which a node makes one of many, or one of another."""
    product = contraction(node)
    if product is not None:
        for labels, operand in zip(product.labels, product.operands, strict=True):
            sizes = zip(labels, graph.shape(operand), strict=True)
            yield from (size for label, size in sizes if label in product.summed)
    elif graph.op(node) in _ALONG and not _is_pointwise(node):
        sizes_of = graph.shape(cast(Node, node.args[0]))
        dims = cast(int | list[int] | None, graph.argument(node, "dim"))
        for dim in [dims] if isinstance(dims, int) else dims or range(len(sizes_of)):
            yield sizes_of[dim]


def _reads_number(node: Node) -> bool:
    """True for arithmetic with a size."""
    return _is_pointwise(node) and _reads_size(node)


def _reads_size(node: Node) -> bool:
    return not all(map(graph.is_tensor, node.all_input_nodes))


def _is_pointwise(node: Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags


def _is_whole(node: Node) -> bool:
    """True for whole numbers: no booleans."""
    if not graph.is_tensor(node):
        return False
    dtype = graph.tensor(node).dtype
    return not (dtype.is_floating_point or dtype == torch.bool)
