"""Follow attention from its softmax to the gates: one pass over the graph in execution order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

from torch.fx import Node

from moh_deploy.frontend.fx import graph
from moh_deploy.frontend.fx.axes import (
    Axis,
    Dim,
    Layout,
    flat,
    fresh_dim,
    fresh_layout,
    leaves,
    resolve,
    same,
)
from moh_deploy.frontend.fx.builder import Operand
from moh_deploy.frontend.fx.contraction import Contraction, contraction
from moh_deploy.frontend.fx.slices import SPLITS
from moh_deploy.frontend.fx.views import broadcast, forward, is_view, lacks
from moh_deploy.frontend.recognize.cores.fused import read_fused
from moh_deploy.frontend.recognize.cores.softmax import ReadConstant, ScoreReader, zeroed
from moh_deploy.frontend.recognize.layer import Core, HeadProjection
from moh_deploy.frontend.recognize.projection import read_projection

_CUTS = frozenset((*SPLITS, "slice", "narrow", "select"))
_PER_HEAD_NORMS = frozenset(["layer_norm", "rms_norm"])
_ARITHMETIC = frozenset(
    ["add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide"]
)


@dataclass(frozen=True)
class Tracked:
    """A tensor that carries attention."""

    layout: Layout  # what its dimensions mean
    # `weights` before the product with the values, `products` where they are not summed up yet,
    # `output` after it.
    stage: Literal["weights", "products", "output"]
    core: Core  # the core it comes from; for weights, the part of a core that is known by then
    gates: tuple[Operand, ...] = ()  # gates that were already applied, each with its layout
    # Of each head, behind the core; or None.
    projection: HeadProjection | None = None

    @property
    def value_axes(self) -> Dim:
        """The axes that only one head's output has."""
        columns = self.core.value_axes if self.projection is None else self.projection.columns
        return leaves(columns)

    def hindered(self, why: str) -> Tracked:
        obstacles = (*self.core.obstacles, why)
        return replace(self, core=replace(self.core, obstacles=tuple(dict.fromkeys(obstacles))))

    def changed(self, node: Node) -> Tracked:
        """The attention behind a node that no op computes, which the refusal names."""
        if self.stage == "output":
            return self.hindered(f"{graph.named(node)} stands between the attention and its gates")
        return self.hindered(
            f"{graph.named(node)} changes the attention weights after their softmax"
        )


@dataclass(frozen=True)
class GatedProduct:
    """A node that multiplies attention with a gate for each (token, head)."""

    node: Node
    attention: Tracked
    layout: Layout  # of the node; it lacks the heads where these are summed over at once
    gate: Operand


class Tracker:
    """Finds every product of an attention output (or its weights) with another tensor that may be
    its gates.
    """

    def __init__(self, nodes: list[Node], dynamic: set[Node], constant: ReadConstant) -> None:
        self._nodes = nodes
        self._dynamic = dynamic
        self._reader = ScoreReader(dynamic, constant)
        self._tracked: dict[Node, Tracked] = {}
        self.products: list[GatedProduct] = []

    def run(self) -> dict[Node, Tracked]:
        """Return what is known of every tensor that carries attention."""
        for node in self._nodes:
            if not graph.is_tensor(node) and graph.op(node) not in _CUTS:
                continue
            found = self._visit(node)
            if found is not None:
                self._tracked[node] = found
        return self._tracked

    def _visit(self, node: Node) -> Tracked | None:
        name = graph.op(node)
        # Where attention begins: a fused operator, [B, H, S, D], or a softmax, [..., S, keys].
        if name == "scaled_dot_product_attention":
            core = read_fused(node)
            return None if core is None else Tracked(core.output.layout, "output", core)
        sources = [source for source in node.all_input_nodes if source in self._tracked]
        if name in graph.SOFTMAXES:
            return self._softmax(node)
        if not sources:
            return None
        # A sum of several attentions is followed in the axes of the first that is complete.
        outputs = [s for s in sources if self._tracked[s].stage == "output"]
        source = (outputs or sources)[0]
        state = self._tracked[source]
        if is_view(node):
            layout = forward(node, state.layout)
            return None if layout is None else replace(state, layout=layout)
        if name in _CUTS or name == "getitem":
            return self._split(node, source, state)
        if name == "where":
            made_safe = _without_nan(node)
            if made_safe in self._tracked and self._tracked[made_safe].stage == "weights":
                return self._tracked[made_safe]
            return self._choice(node, source, state)
        if name == "sum":
            return self._sum(node, state)
        # matmul, einsum, and element-wise products: one of them applies the weights to the values,
        # another one the gates.
        product = contraction(node)
        if product is not None:
            return self._product(node, product, source, state)
        if name == "linear":
            return self._linear(node, source, state)
        if name in _ARITHMETIC:
            return self._arithmetic(node, source, state)
        if name in _PER_HEAD_NORMS and state.stage == "output":
            # Of head_dim alone, as in differential attention. A norm over merged heads ends the
            # layer.
            normalized = cast(list[object], graph.argument(node, "normalized_shape"))
            if len(normalized) != 1 or leaves(state.layout[-1]) != state.value_axes:
                return None
            return state.changed(node)
        # Followed all the same, so that the refusal can name what stands in the way.
        if graph.is_function_of_elements(node) and graph.shape(node) == graph.shape(source):
            return state.changed(node)
        return None

    def _softmax(self, node: Node) -> Tracked | None:
        """Attention weights start at a softmax over products of queries and keys."""
        scores = cast(Node, node.args[0])
        if not self._reader.products_of(scores):
            return None
        # [B, H, S, keys], say: what the dimensions are is learned from what is done with them. The
        # values are not known yet; until then the keys stand in for the head dimension.
        layout = fresh_layout(graph.shape(node))
        key_axes = leaves(layout[cast(int, graph.argument(node, "dim", -1)) % len(layout)])
        read = self._reader.read(scores, layout, key_axes)
        core = Core(
            anchor=node,
            scores=None if isinstance(read, str) else read,
            value=Operand(node, layout),
            output=Operand(node, layout),
            value_axes=key_axes,
            obstacles=(read,) if isinstance(read, str) else (),
        )
        return Tracked(resolve(layout), "weights", core)

    def _split(self, node: Node, source: Node, state: Tracked) -> Tracked | None:
        """Pieces of the weights along the keys stay weights; other pieces are not followed."""
        if state.stage != "weights":
            return None
        if not graph.is_tensor(node):
            return state
        layout = list(state.layout)
        before = (
            graph.shape(source)
            if graph.is_tensor(source)
            else graph.shape(cast(Node, source.args[0]))
        )
        if len(graph.shape(node)) != len(before):
            return None
        # Of [..., keys] -> [..., some keys]; a piece of the queries or heads is another attention.
        key_axes = set(leaves(state.core.value_axes))
        for position, (extent, full) in enumerate(zip(graph.shape(node), before, strict=True)):
            if extent != full:
                if not set(leaves(layout[position])) <= key_axes:
                    return None
                layout[position] = fresh_dim(extent)
        piece = tuple(axis for dim in layout for axis in dim if axis not in set(flat(state.layout)))
        if not piece:
            return state
        whole = replace(state, layout=tuple(layout), core=replace(state.core, value_axes=piece))
        return whole.hindered("one softmax serves several products with values")

    def _product(
        self, node: Node, product: Contraction, source: Node, state: Tracked
    ) -> Tracked | None:
        # `state.layout` names the dimensions of one operand; labels that both have carry the names
        # over to the other operand and to the result.
        side = product.operands.index(source) if source in product.operands else None
        if side is None or product.operands[0] is product.operands[1]:
            return None
        other, out = product.layouts(state.layout, side)
        partner = Operand(product.operands[1 - side], other)
        # [B, H, S, keys] @ [B, H, keys, D]
        if state.stage == "weights" and product.summed:
            return self._values(node, state, partner, out)
        if product.summed and state.stage == "output":
            # Summed over head_dim: a projection of each head. Summed over heads as well: an einsum
            # of gates [B, S, H] and heads [B, S, H, D] that merges them at once.
            if state.projection is None:
                return self._projected(source, state, partner, out)
            self.products.append(GatedProduct(node, state, resolve(out), partner))
            return None
        if product.summed or state.stage == "products":
            return None
        # `(weights[..., None] * value[:, :, None]).sum(-2)`: a matmul that is written out. Until
        # the sum over the keys it is neither weights nor output.
        widens = set(flat(out)) > set(flat(state.layout))
        if state.stage == "weights" and widens and not lacks(other, state.core.value_axes):
            core = replace(state.core, value=partner, output=Operand(node, out))
            return replace(state, layout=resolve(out), stage="products", core=core)
        # A gate brings no axis of its own: what does is no gate but another product.
        if not same(out, state.layout) and set(flat(out)) != set(flat(state.layout)):
            return None
        return self._elementwise_product(node, state, partner, out)

    def _linear(self, node: Node, source: Node, state: Tracked) -> Tracked | None:
        found = read_projection(node, lambda inner: inner not in self._dynamic)
        if found is None or found.x is not source or state.stage != "output":
            return None
        weight, out = found.product.layouts(state.layout, 0)
        result = self._projected(source, state, Operand(found.weight, weight), out)
        if result is None or found.bias is None:
            return result
        return result.hindered("a bias is added to each head's projection before the gates")

    def _projected(
        self, source: Node, state: Tracked, weight: Operand, out: Layout
    ) -> Tracked | None:
        """Each head's output times weights: the head dimension is summed over, and nothing else."""
        # [B, H, S, D] @ [H, D, C] -> [B, H, S, C]
        own = set(flat(state.layout))
        summed, columns = own - set(flat(out)), tuple(a for a in flat(out) if a not in own)
        if state.projection or state.gates or weight.node in self._dynamic or not columns:
            return None
        if summed != set(state.value_axes):
            return None
        projection = HeadProjection(Operand(source, state.layout), weight, columns)
        return replace(state, layout=resolve(out), projection=projection)

    def _sum(self, node: Node, state: Tracked) -> Tracked | None:
        """The sum of such products over the keys, or of gated heads, written by hand."""
        product, value = contraction(node), state.core.value
        if state.stage == "output" and product is not None:
            heads = [operand for operand in product.operands if operand in self._tracked]
            return self._product(node, product, heads[0], self._tracked[heads[0]])
        if state.stage != "products":
            return None
        if product is None or value.node not in product.operands:
            return None
        weights = product.operands[1 - product.operands.index(value.node)]
        if weights not in self._tracked:
            return None
        # [B, H, S, keys, D] -> [B, H, S, D]
        summed = {dim % len(state.layout) for dim in cast(list[int], node.args[1])}
        empty = ((),) if graph.argument(node, "keepdim", False) else ()
        dims = [empty if i in summed else (dim,) for i, dim in enumerate(state.layout)]
        out = tuple(dim for kept in dims for dim in kept)
        return self._values(node, self._tracked[weights], value, out)

    def _values(self, node: Node, state: Tracked, value: Operand, out: Layout) -> Tracked | None:
        """Weights times values: the keys are summed over, and nothing else."""
        # The sum must be over the keys: sums over heads or queries mix weights (talking heads).
        weights = set(flat(state.layout))
        summed = weights - set(flat(out))
        if not summed & set(leaves(state.core.value_axes)) and value.node not in self._dynamic:
            mixed = replace(state, layout=resolve(out))
            return mixed.hindered(
                f"{graph.named(node)} mixes the attention weights of several heads or queries"
            )
        if summed != set(leaves(state.core.value_axes)):
            return None
        # What only the values have is the head dimension, whatever its place.
        value_axes = tuple(axis for axis in flat(value.layout) if axis not in weights)
        core = replace(state.core, value=value, output=Operand(node, out), value_axes=value_axes)
        result = replace(state, layout=resolve(out), stage="output", core=core)
        if set(flat(value.layout)) & _query_only(core):
            result = result.hindered("each query has values of its own")
        # gate * (weights @ values) = (gate * weights) @ values, where the gate has no keys.
        if result.gates:
            *earlier, last = result.gates
            inner = replace(result, gates=tuple(earlier))
            self.products.append(GatedProduct(node, inner, result.layout, last))
        return result

    def _elementwise_product(
        self, node: Node, state: Tracked, partner: Operand, out: Layout
    ) -> Tracked | None:
        moved = replace(state, layout=resolve(out))
        # A factor that varies along the keys is a mask or a bias of the weights, not a gate.
        if state.stage == "weights" and not lacks(partner.layout, state.core.value_axes):
            reader, scores = self._reader, state.core.scores
            if scores is not None:
                scores = zeroed(scores, partner, reader.constant, reader.number)
            if scores is None:
                return moved.changed(node)
            return replace(moved, core=replace(state.core, scores=scores))
        # Whether this is a gate is decided later, with all uses known; what follows may be one too.
        if state.stage != "weights":
            self.products.append(GatedProduct(node, state, moved.layout, partner))
        return replace(moved, gates=(*state.gates, partner))

    def _choice(self, node: Node, source: Node, state: Tracked) -> Tracked | None:
        """`where(chosen, attention, 0)` is attention times a gate of 1 or 0; of the weights, what
        hides keys once more."""
        condition, kept, otherwise = node.args[:3]
        if kept is not source or not isinstance(condition, Node) or state.stage == "products":
            return None
        layout = broadcast(condition, state.layout)
        if (
            layout is None
            or self._reader.number(otherwise) != 0
            or graph.shape(node) != graph.shape(source)
        ):
            return None
        return self._elementwise_product(node, state, Operand(condition, layout), state.layout)

    def _arithmetic(self, node: Node, source: Node, state: Tracked) -> Tracked | None:
        """Sums, and products with numbers: followed, but no longer a plain attention output."""
        partners = [arg for arg in graph.tensor_inputs(node) if arg is not source]
        if graph.shape(node) != graph.shape(source) or any(
            broadcast(partner, state.layout) is None for partner in partners
        ):
            return None
        if state.stage == "output" and partners and not all(p in self._tracked for p in partners):
            return None  # a residual connection ends the attention
        if state.stage == "weights":
            return state.changed(node)
        what = "another attention output" if partners else "a number"
        return state.hindered(
            f"{graph.named(node)} combines the attention output with {what} before the gates"
        )


def _without_nan(node: Node) -> Node | None:
    """Return p of `where(isnan(p), 0, p)`, or the other way round: exporters write it behind a
    softmax.

    A row of scores that is all hidden has NaN for weights, and they make zeros of it. So does the
    operator that takes over, which leaves the rest as it is.
    """
    condition, zero, kept = node.args
    if isinstance(condition, Node) and graph.op(condition) in ("logical_not", "bitwise_not"):
        condition, zero, kept = condition.args[0], kept, zero
    same = (
        isinstance(condition, Node) and graph.op(condition) == "isnan" and condition.args[0] is kept
    )
    return kept if same and isinstance(kept, Node) and zero == 0 else None


def _query_only(core: Core) -> set[Axis]:
    """Axes of the query that its keys do not share: the tokens (and grouped heads)."""
    if core.scores is None:
        return set()
    return set(flat(core.scores.query.layout)) - set(flat(core.scores.key.layout))


def token_axes(core: Core) -> Dim:
    """Axes of the output that only the query has."""
    query_only = _query_only(core)
    return tuple(axis for axis in flat(core.output.layout) if axis in query_only)
