"""Decide which products with attention apply gates, and describe the layers they make."""

from collections.abc import Mapping, Sequence
from typing import cast

from torch.fx import Node

from moh_deploy.frontend.fx import graph
from moh_deploy.frontend.fx.axes import Axis, Dim, Layout, flat, fresh_dim, leaves, product, resolve
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.known_values import Constants, fixed_value
from moh_deploy.frontend.fx.views import backward, broadcast, forward, history, is_view, lacks
from moh_deploy.frontend.recognize.layer import Core, MoHLayer
from moh_deploy.frontend.recognize.router_like import SQUASHES
from moh_deploy.frontend.recognize.routers.router import (
    SELECTIONS,
    find_selection,
    is_projection,
    router_cone,
)
from moh_deploy.frontend.recognize.track import GatedProduct, Tracked, token_axes
from moh_deploy.frontend.recognize.walk import walk

_SUMS = frozenset(["add", "sub", "subtract"])
_ELEMENTWISE = _SUMS | frozenset(
    ["mul", "multiply", "div", "divide", "true_divide", "where", "sigmoid", "relu", "exp", "clamp"]
    + ["to_copy"]
)
_CUTS = frozenset(["slice", "narrow", "split", "split_with_sizes"])
_PIECES = _CUTS | {"select", "getitem"}


def layers_of(
    products: Sequence[GatedProduct],
    tracked: Mapping[Node, Tracked],
    dynamic: set[Node],
    constant: Constants,
) -> list[MoHLayer]:
    """Keep the products that apply gates; of several in a row, the last, with all their gates."""
    # attention * a * b: each product was met as one that may apply gates. The outer one has both
    # factors; what lies inside its chain is the same layer.
    found = (_layer(product, tracked, dynamic, constant) for product in products)
    layers = [layer for layer in found if layer is not None]
    inner = {
        id(other)
        for layer in layers
        for other in layers
        if other is not layer and other.node in chain_of(layer.core, layer.node, tracked)
    }
    return [layer for layer in layers if id(layer) not in inner]


def _layer(
    found: GatedProduct, tracked: Mapping[Node, Tracked], dynamic: set[Node], constant: Constants
) -> MoHLayer | None:
    # [B, S, H, D] times a gate [B, S, H, 1], and later a view [B, S, H * D]: the heads are what is
    # merged with the head dimension. Whatever else there is are the batch and the tokens.
    core, value_axes = found.attention.core, found.attention.value_axes
    # An einsum that applies the gates may sum over the heads at once.
    kept = set(flat(found.layout))
    summed = tuple(axis for axis in flat(found.attention.layout) if axis not in kept)
    merged = summed or _head_axes(found, tracked)
    if merged is None or set(merged) & set(value_axes):
        return None
    peeled = [without_axes(factor, value_axes) for factor in found.attention.gates]
    gate = without_axes(found.gate, value_axes)
    if gate is None:
        return None
    factors = [factor for factor in (*peeled, gate) if factor is not None]
    # Tokens that are flattened with the heads, [B, S * H, D], stand in front, and have a dimension
    # of their own in the gates.
    of_query = set(token_axes(core))
    if of_query <= set(merged):
        _, layout = history(gate.node, gate.layout)[-1]
        of_heads = next((dim for dim in layout if merged[-1] in dim), merged)
        inside = (i for i, axis in enumerate(merged) if axis not in of_query or axis in of_heads)
        merged = merged[next(inside) :]
    heads = leaves(merged)  # a gate for a group has split them
    tokens = tuple(axis for axis in token_axes(core) if axis not in heads)
    # One factor has to be a gate; the others, such as a weight of each head, go along with it.
    computed = (factor for factor in factors if not _normalizes(factor.node, tracked, dynamic))
    if not any(_is_gate(factor, heads, tokens, dynamic, constant) for factor in computed):
        return None
    obstacles = [*core.obstacles]
    if None in peeled:
        obstacles.append("channels of the attention are scaled before its gates")
    obstacles += _other_uses(core, found.node, tracked)
    batch = tuple(axis for axis in flat(found.layout) if axis not in {*heads, *tokens, *value_axes})
    # Without scores the queries' axes are unknown: the first one is taken for the batch.
    if core.scores is None and not tokens:
        batch, tokens = batch[:1], batch[1:]
    return MoHLayer(
        path=".".join(common_path(core.anchor, found.node)),
        node=found.node,
        end=found.node,
        layout=resolve(found.layout),
        core=core,
        gates=tuple(factors),
        batch=batch,
        heads=heads,
        tokens=tokens,
        obstacles=tuple(obstacles),
        projection=found.attention.projection,
    )


def _normalizes(factor: Node, tracked: Mapping[Node, Tracked], dynamic: set[Node]) -> bool:
    """True for a factor that is computed from the attention alone, such as 1 / its mean square, and
    neither ranked nor squashed."""

    def is_end(node: Node) -> bool:
        return node in tracked or node.op != "call_function" or is_projection(node)

    cone = list(walk(factor, lambda node: () if is_end(node) else node.all_input_nodes))
    if any(graph.op(node) in SELECTIONS | SQUASHES for node in cone if node not in tracked):
        return False
    ends = [node for node in cone if is_end(node) and node in dynamic and graph.is_tensor(node)]
    return bool(ends) and all(node in tracked for node in ends)


def _is_gate(
    factor: Operand, heads: Dim, tokens: Dim, dynamic: set[Node], constant: Constants
) -> bool:
    """A gate is computed from the input, and has a value for each head, or group of heads.

    One that no input changes counts where it has a value for each token, of learned queries, where
    it selects heads, or is stored with a 0 for some, as pruning leaves it (hard concrete, arXiv
    1905.09418); a mere weight of each head does not.
    """
    present = set(flat(factor.layout))
    if not set(heads) & present:
        return False
    if factor.node in dynamic:
        return True
    cone = router_cone(factor.node)
    if (not tokens or present & set(tokens)) and any(map(is_projection, cone)):
        return True
    size = product(heads)
    if size.is_Integer and find_selection(cone, int(size)) is not None:
        return True
    return closes_heads(factor.node, constant)


def closes_heads(factor: Node, constant: Constants) -> bool:
    """Tell whether a factor that no input changes has a 0."""
    value = fixed_value(factor, constant)
    return value is not None and bool((value == 0).any())


def without_axes(operand: Operand, axes: Dim) -> Operand | None:
    """The operand without axes it is constant along; None where it varies along them."""
    # gate[..., None].expand(-1, -1, -1, D): the tensor before it was expanded lacks the axes.
    for node, layout in history(operand.node, operand.layout):
        if lacks(layout, axes):
            return Operand(node, layout)
    whole = Operand(operand.node, resolve(operand.layout))
    return whole if _constant_along(whole, axes) else None


def _constant_along(operand: Operand, axes: Dim) -> bool:
    """Element-wise operations of tensors that do not vary along the axes."""
    node, layout = operand.node, resolve(operand.layout)
    if lacks(layout, axes):
        return True
    step = backward(node, layout)
    if step is not None:
        return _constant_along(Operand(*step), axes)
    sources = graph.tensor_inputs(node) if graph.op(node) in _ELEMENTWISE else []
    return bool(sources) and all(
        (aligned := broadcast(source, layout)) is not None
        and _constant_along(Operand(source, aligned), axes)
        for source in sources
    )


def _head_axes(found: GatedProduct, tracked: Mapping[Node, Tracked]) -> Dim | None:
    """The axes that are merged, or projected away, together with the head dimension."""
    value_axes, tokens = found.attention.value_axes, token_axes(found.attention.core)
    # Forward, nearest readers first, through views and whatever else keeps the axes, to the first
    # reshape [..., H, D] -> [..., H * D] or projection that sums over both.
    queue, seen = [(found.node, resolve(found.layout))], {found.node}
    while queue:
        current, known = queue.pop(0)
        merged = _merged_with(known, value_axes, tokens)
        if merged:
            return merged
        queue += [part for user in current.users for part in _parts(user, known, tokens)]
        for user in current.users:
            if user in seen or not graph.is_tensor(user):
                continue
            seen.add(user)
            joined = _projected_with(user, current, known, value_axes) or _summed_over(
                user, known, {*value_axes, *tokens}
            )
            if joined:
                return joined
            if is_view(user) and (moved := forward(user, known)) is not None:
                queue.append((user, resolve(moved)))
            elif graph.op(user) in _SUMS and graph.shape(user) == graph.shape(current):
                queue.append((user, known))  # of several attentions: in the axes of this one
            elif user in tracked and tracked[user].stage == "output":
                queue.append((user, resolve(tracked[user].layout)))
    return None


def _parts(user: Node, layout: Layout, tokens: Dim) -> list[tuple[Node, Layout]]:
    """The parts that a slice or a split makes of the tokens."""
    if graph.op(user) not in _CUTS:
        return []
    cut = cast(int, graph.argument(user, "dim", 0)) % len(layout)
    if not layout[cut] or not set(layout[cut]) <= set(tokens):
        return []
    pieces = [user] if graph.is_tensor(user) else list(user.users)
    return [
        (p, (*layout[:cut], fresh_dim(graph.shape(p)[cut]), *layout[cut + 1 :])) for p in pieces
    ]


def _merged_with(layout: Layout, value_axes: Dim, tokens: Dim) -> Dim | None:
    """The axes beside the head dimension in one dimension, in front of it or behind it."""
    # [B, S, H * D] or [B, S, D * H]. Channels with nothing but tokens behind them, [B, D * S], are
    # flattened, not merged.
    count = len(value_axes)
    for dim in layout if count else ():
        if len(dim) > count and dim[-count:] == value_axes:
            return dim[:-count]
        if dim[:count] == value_axes and not set(dim[count:]) <= set(tokens):
            return dim[count:]
    return None


def _projected_with(user: Node, source: Node, layout: Layout, value_axes: Dim) -> Dim | None:
    """Axes summed over together with the head dimension by an output projection for each head."""
    found = contraction(user)
    if found is None or not found.summed or source not in found.operands:
        return None
    side = found.operands.index(source)
    _, out = found.layouts(layout, side)
    summed = [axis for axis in flat(layout) if axis not in set(flat(out))]
    if not set(value_axes) <= set(summed):
        return None
    return tuple(axis for axis in summed if axis not in value_axes) or None


def _summed_over(user: Node, layout: Layout, others: set[Axis]) -> Dim | None:
    """Axes that are summed or averaged over, none of them of the channels or the tokens: heads that
    are added instead of merged."""
    dims = graph.argument(user, "dim") if graph.op(user) in ("sum", "mean") else None
    if not isinstance(dims, (list, tuple)):
        return None
    summed = leaves(axis for dim in dims for axis in layout[cast(int, dim) % len(layout)])
    fixed = all(axis.size.is_Integer for axis in summed)
    return summed if summed and fixed and others.isdisjoint(summed) else None


def chain_of(core: Core, node: Node, tracked: Mapping[Node, Tracked]) -> set[Node]:
    """Tensors that carry a core's attention from the softmax to `node`, both included."""
    # Backwards from the gated product [B, S, H, D]: only what is tracked for the same softmax
    # belongs to it.
    return set(
        walk(
            node,
            lambda current: [
                source
                for source in current.all_input_nodes
                if source in tracked and tracked[source].core.anchor is core.anchor
            ],
        )
    )


def _other_uses(core: Core, node: Node, tracked: Mapping[Node, Tracked]) -> tuple[str, ...]:
    """Attention that is needed ungated elsewhere has to be computed anyway."""
    # An op that skips closed heads never computes their ungated attention: another reader of it,
    # such as a model that returns its attention weights, would get nothing.
    chain = chain_of(core, node, tracked)
    for member in chain - {node}:
        what = "the attention before its gates is"
        if member in tracked and tracked[member].stage == "weights":
            what = "the attention weights are"
        for user in member.users:
            if user.op == "output":
                advice = "return it behind its gates, or not at all"
                if "weights" in what:
                    advice = "let the model not return them (output_attentions=False, or so)"
                return (f"{what} also an output of the model, so no head can be skipped: {advice}",)
            if not graph.is_tensor(user) or _serves_shapes_only(user):
                continue
            if user not in chain:
                return (f"{what} also used by {graph.named(user)}",)
    return ()


def _serves_shapes_only(node: Node) -> bool:
    """Tell whether the values of a node are unused, as by `zeros_like(attention[..., 0])`."""
    if node.op == "output":
        return False
    moves = is_view(node) or graph.op(node) in _PIECES
    return graph.reads_shape_only(node) or (
        all(map(_serves_shapes_only, node.users)) if moves else not node.users
    )


def common_path(first: Node, second: Node) -> tuple[str, ...]:
    """The module path of the innermost module that holds both nodes."""
    a, b = graph.module_path(first), graph.module_path(second)
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return a[:length]
