"""The result of reading a router: its form, and the MoHRouter that can take over from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.contraction import contraction
from moh_deploy.frontend.fx.graph import argument, example_shape, is_tensor, op, rank, shape
from moh_deploy.frontend.fx.views import through_views
from moh_deploy.frontend.recognize.walk import walk
from moh_deploy.ops.routers import RouterForm

# The selection of a router: which scores it ranks, and how many heads it keeps.

# A router begins behind its projection: what the logits are made of is the model's business.
_PROJECTIONS = frozenset(["linear", "addmm", "conv1d", "conv2d", "conv3d", "convolution"])
NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "linalg_vector_norm", "norm")
SELECTIONS = frozenset(["topk", "sort", "argsort", "argmax", "max", "kthvalue"])
_STOPS = frozenset((*NORMS, "embedding", "scaled_dot_product_attention"))


@dataclass(frozen=True)
class Selection:
    """A ranking of candidate heads."""

    node: Node
    scores: Node
    dim: int
    candidates: int  # how many heads are ranked
    top_k: int  # how many are kept


def router_cone(gates: Node) -> list[Node]:
    """Return the nodes that gates are computed from, back to projections, nearest first."""
    # Breadth first, so that of two selections the one nearer to the gates comes first.
    return list(walk(gates, lambda node: () if ends_router(node) else node.all_input_nodes))


def ends_router(node: Node) -> bool:
    """True where the router ends: at an input, a projection or a norm."""
    return node.op != "call_function" or op(node) in _STOPS or is_projection(node)


def is_projection(node: Node) -> bool:
    """True for a product with weights: a linear layer, a convolution, or with a parameter."""
    if op(node) in _PROJECTIONS:
        return True
    found = contraction(node) if op(node) in ("matmul", "bmm", "mm", "einsum") else None
    return (
        found is not None
        and bool(found.summed)
        and any(through_views(operand).op == "placeholder" for operand in found.operands)
    )


def find_selection(cone: list[Node], num_heads: int) -> Selection | None:
    """The selection with the most candidates; None where no head is closed by rank."""
    # A group-limited router ranks groups first and heads then: the heads are more candidates.
    found = [selection for selection in _selections(cone) if selection.candidates <= num_heads]
    return max(found, key=lambda selection: selection.candidates, default=None)


def _selections(cone: list[Node]) -> Iterator[Selection]:
    for node in cone:
        name = op(node)
        if name not in SELECTIONS:
            continue
        scores = cast(Node, node.args[0])
        dim = argument(node, "dim", -1)
        if not is_tensor(scores) or not isinstance(dim, int) or not rank(scores):
            continue
        if not shape(scores)[dim % rank(scores)].is_Integer:
            continue  # heads that choose their tokens: as many as there happen to be
        candidates = example_shape(scores)[dim % rank(scores)]
        top_k = _selected_count(node, name, cone)
        if top_k is not None and name == "topk" and not argument(node, "largest", True):
            top_k = candidates - top_k  # the lowest are dropped
        if top_k is not None and 0 < top_k <= candidates:
            yield Selection(node, scores, dim % rank(scores), candidates, top_k)


def _selected_count(node: Node, name: str, cone: list[Node]) -> int | None:
    """Return the number of candidates that a selection keeps."""
    if name in ("argmax", "max"):
        return 1
    k = argument(node, "k") if name in ("topk", "kthvalue") else None
    if name == "topk":
        return k if isinstance(k, int) else None
    if name == "kthvalue":  # counts from the smallest
        scores = cast(Node, node.args[0])
        return example_shape(scores)[cast(int, argument(node, "dim", -1))] - cast(int, k) + 1
    # A sort keeps the heads that a slice of its result keeps:
    # sorted, order = scores.sort(-1, descending=True); order[..., :k]
    members = set(cone)
    pending = [user for user in node.users if user in members]
    while pending:
        user = pending.pop(0)
        if op(user) in ("slice", "narrow"):
            size = shape(user)[cast(int, argument(user, "dim", 0)) % rank(user)]
            return int(size) if size.is_Integer else None
        if op(user) == "getitem":
            pending.extend(member for member in user.users if member in members)
    return None


@dataclass(frozen=True)
class Logits:
    """A tensor of logits and its dimension of heads; the other dimensions are tokens."""

    node: Node
    dim: int

    def of(self, values: dict[Node, torch.Tensor]) -> torch.Tensor:
        """The values, heads last."""
        return values[self.node].movedim(self.dim, -1)


@dataclass(frozen=True)
class Finish:
    """The weighing behind a MoHRouter, by ordinary operators, of the gates of the routed heads.

    factor * scale * gates * weights / (sum(gates * weights) + epsilon)
    """

    weights: Logits | None = None  # as large as the routed logits; None for 1
    normalized: bool = False  # the weighed gates of a token are divided by their sum
    factor: float = 1.0  # of all of them
    epsilon: float = 0.0  # what is added to the sum
    scale: Logits | None = None  # one number for each token; None for 1
    shared_gate: float = 1.0  # the gate of each shared head, where there are any
    # Of shared heads that are weighed themselves, in the same form; None for `shared_gate`.
    shared: Finish | None = None
    joint: Finish | None = None  # of all heads together, afterwards; or None


@dataclass(frozen=True)
class Router:
    """The router of a layer, as a MoHRouter and what weighs its gates, or the reason why it stays.

    Attributes:
        form: One of `moh_deploy.ops.routers`.
        num_shared_heads, top_k: None where the router's form does not tell.
        routed_logits, shared_logits, stage_logits: Inputs of the MoHRouter; all None for `custom`
            and `constant`.
        finish: What is made of the MoHRouter's gates; None where they are the layer's.
        reason: Why the router stays as it is; None if it becomes a MoHRouter or constant gates.
        fixed_gates: [..., H], the gates that no input changes, of size 1 along dimensions of
            dynamic size; None where inputs decide them.
    """

    form: RouterForm
    num_shared_heads: int | None
    top_k: int | None
    selection: Selection | None
    routed_logits: Logits | None = None
    shared_logits: Logits | None = None
    stage_logits: Logits | None = None
    gate_mode: Literal["weighted", "mask"] = "weighted"
    finish: Finish | None = None
    reason: str | None = None
    fixed_gates: torch.Tensor | None = None

    @property
    def logits(self) -> tuple[Logits | None, Logits | None, Logits | None]:
        """The inputs of the MoHRouter, in its order."""
        return self.routed_logits, self.shared_logits, self.stage_logits
