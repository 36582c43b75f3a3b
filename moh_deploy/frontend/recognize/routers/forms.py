"""Propose a MoHRouter for a layer's gates and prove it by running both on the same logits.

Source of the forms: arXiv 2410.11842, section 3.2 (two-stage routing), and the query-norm routing
of the language models that were published with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch.fx import Node
from torch.fx.node import map_arg

from moh_deploy.frontend.recognize.graph import (
    argument,
    example_shape,
    hint,
    is_tensor,
    op,
    rank,
)
from moh_deploy.frontend.recognize.routers.selection import (
    Selection,
    find_selection,
    router_cone,
)
from moh_deploy.frontend.recognize.views import is_view

# Logits of these scales make flat, ordinary and saturated softmaxes.
_SCALES = (0.05, 1.0, 8.0)


@dataclass(frozen=True)
class Router:
    """How a layer's gates are computed.

    Attributes:
        form: `two_stage`, `top_k`, `shared`, `query_norm`, `mask`, or `custom` for a router that
            MoHRouter does not express.
        num_shared_heads, top_k: None where the router's form does not tell.
        routed_logits, shared_logits, stage_logits: Inputs of the MoHRouter; all None for `custom`.
        gate_mode: Attribute of the MoHRouter.
        selection: Where heads are ranked; None where none is.
        reason: Why the router stays as it is; None if it becomes a MoHRouter.
    """

    form: str
    num_shared_heads: int | None
    top_k: int | None
    selection: Selection | None
    routed_logits: Node | None = None
    shared_logits: Node | None = None
    stage_logits: Node | None = None
    gate_mode: Literal["weighted", "mask"] = "weighted"
    reason: str | None = None


def read_router(gates: Node) -> Router:
    """Read the router whose result are the gates [..., H]."""
    num_heads = example_shape(gates)[-1]
    cone = router_cone(gates)
    selection = find_selection(cone, num_heads)
    softmaxes = [node for node in cone if op(node) in ("softmax", "_softmax")]
    for proposal in _proposals(softmaxes, selection, num_heads):
        if _computes(proposal, gates, cone):
            return replace(proposal, form=_name(proposal))
    shared = None if selection is None else num_heads - selection.candidates
    return Router(
        form="custom",
        num_shared_heads=shared,
        top_k=None if selection is None else selection.top_k,
        selection=selection,
        reason="the router is of no published form; it stays as ordinary operators",
    )


def _proposals(
    softmaxes: list[Node], selection: Selection | None, num_heads: int
) -> Iterator[Router]:
    """Every assignment of the softmaxes to routed, shared and stage logits that fits by size."""
    routed, others = None, softmaxes
    if selection is not None:
        ranked = _through_views(selection.scores)
        if ranked not in softmaxes:
            return
        routed = cast(Node, ranked.args[0])
        others = [node for node in softmaxes if node is not ranked]
    candidates = 0 if selection is None else selection.candidates
    base = Router(
        form="",
        num_shared_heads=num_heads - candidates,
        top_k=0 if selection is None else selection.top_k,
        selection=selection,
        routed_logits=routed,
    )
    logits = [cast(Node, node.args[0]) for node in others if _over_last_dim(node)]
    if len(logits) != len(others) or (routed is not None and not _over_last_dim(ranked)):
        return
    yield from _assignments(base, logits)


def _assignments(base: Router, logits: list[Node]) -> Iterator[Router]:
    shared = cast(int, base.num_shared_heads)
    if not logits and base.routed_logits is not None:
        yield base
        yield replace(base, gate_mode="mask")
    if len(logits) == 1:
        if shared > 1 and _extent(logits[0]) == shared:
            yield replace(base, shared_logits=logits[0])
        if shared == 1 and _extent(logits[0]) == 2 and base.routed_logits is not None:
            yield replace(base, stage_logits=logits[0])
    if len(logits) == 2 and base.routed_logits is not None:
        for first, second in itertools.permutations(logits):
            if _extent(first) == shared and _extent(second) == 2:
                yield replace(base, shared_logits=first, stage_logits=second)


def _name(router: Router) -> str:
    if router.routed_logits is None:
        return "shared"
    if router.gate_mode == "mask":
        return "query_norm" if _from_norms(router.routed_logits) else "mask"
    return "two_stage" if router.stage_logits is not None else "top_k"


def _from_norms(logits: Node) -> bool:
    """True where the logits are L2 norms, scaled or not."""
    return any(op(node) in ("linalg_vector_norm", "norm") for node in router_cone(logits))


def _computes(proposal: Router, gates: Node, cone: list[Node]) -> bool:
    """Run the model's own router and the proposal on random logits and compare."""
    inputs = [
        node
        for node in (proposal.routed_logits, proposal.shared_logits, proposal.stage_logits)
        if node is not None
    ]
    between = _between(gates, set(inputs), set(cone))
    if between is None:
        return False
    generator = torch.Generator().manual_seed(0)
    for scale in _SCALES:
        values = {
            node: torch.randn(example_shape(node), generator=generator, dtype=torch.float64) * scale
            for node in inputs
        }
        expected = _run(between, values, gates)
        if expected is None or any(_rows(value) != _rows(expected) for value in values.values()):
            return False
        if not _equal(expected, _propose(proposal, values, expected)):
            return False
    return True


def _between(gates: Node, inputs: set[Node], cone: set[Node]) -> list[Node] | None:
    """Nodes from the logits to the gates, in order; None if the gates depend on more."""
    found, stack = {gates}, [gates]
    while stack:
        node = stack.pop()
        if node in inputs:
            continue
        if node not in cone or (node.op != "call_function" and is_tensor(node)):
            return None
        for source in node.all_input_nodes:
            if source in found or not (is_tensor(source) or _makes_tuple(source)):
                continue
            if source not in inputs and source.op != "call_function":
                return None
            found.add(source)
            stack.append(source)
    return [node for node in gates.graph.nodes if node in found and node not in inputs]


def _makes_tuple(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (tuple, list))


def _run(nodes: list[Node], values: dict[Node, torch.Tensor], gates: Node) -> torch.Tensor | None:
    """Interpret the nodes; sizes come from the example."""
    env: dict[Node, object] = dict(values)

    def look_up(node: Node) -> object:
        return env[node] if node in env else hint(node.meta["val"])

    for node in nodes:
        arguments = map_arg((node.args, dict(node.kwargs)), look_up)  # type: ignore[arg-type]
        args, kwargs = cast(tuple[tuple[object, ...], dict[str, object]], arguments)
        try:
            env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, IndexError, TypeError, ValueError):
            return None  # cannot be run on its own, so cannot be proven
    return cast(torch.Tensor, env[gates])


def _propose(
    router: Router, values: dict[Node, torch.Tensor], expected: torch.Tensor
) -> torch.Tensor:
    def logits(node: Node | None) -> torch.Tensor | None:
        if node is None:
            return None
        return values[node].reshape(*expected.shape[:-1], -1)

    computed: torch.Tensor = torch.ops.moh.router.default(
        logits(router.routed_logits),
        logits(router.shared_logits),
        logits(router.stage_logits),
        router.top_k,
        router.num_shared_heads,
        router.gate_mode,
    )
    return computed


def _rows(tensor: torch.Tensor) -> int:
    return tensor.numel() // tensor.shape[-1]


def _equal(expected: torch.Tensor, computed: torch.Tensor) -> bool:
    if expected.shape != computed.shape or not torch.equal(expected != 0, computed != 0):
        return False
    tolerance = 1e-9 if expected.dtype == torch.float64 else 1e-5
    return torch.allclose(expected.double(), computed, rtol=tolerance, atol=tolerance)


def _through_views(node: Node) -> Node:
    while is_view(node) and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _over_last_dim(softmax: Node) -> bool:
    dim = argument(softmax, "dim", -1)
    return isinstance(dim, int) and dim % rank(softmax) == rank(softmax) - 1


def _extent(node: Node) -> int:
    return example_shape(node)[-1]
