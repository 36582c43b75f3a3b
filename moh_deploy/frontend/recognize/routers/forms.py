"""Propose a MoHRouter for a layer's gates and prove it by running both on the same logits.

Source of the forms: arXiv 2410.11842, section 3.2 (two-stage routing), and the query-norm routing
of the language models that were published with it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch.fx import Node

from moh_deploy.frontend.fx.constants import Constants
from moh_deploy.frontend.fx.graph import ancestors, argument, example_shape, op, rank, tensor
from moh_deploy.frontend.fx.views import through_views
from moh_deploy.frontend.recognize.routers.ranked import read_ranked
from moh_deploy.frontend.recognize.routers.router import Logits, Router
from moh_deploy.frontend.recognize.routers.selection import (
    Selection,
    find_selection,
    is_projection,
    router_cone,
)
from moh_deploy.frontend.recognize.routers.trial import (
    SCALES,
    Values,
    made_up,
    nodes_between,
    rounds,
    run_nodes,
    run_router,
)


def read_router(gates: Node, query: Node | None, constant: Constants) -> Router:
    """Read the router whose result are the gates [..., H].

    Args:
        constant: Value of a constant node.
        query: The attention's query, to tell a router that reads it; None where it is not known.
    """
    num_heads = example_shape(gates)[-1]
    cone = router_cone(gates)
    selection = find_selection(cone, num_heads)
    softmaxes = [node for node in cone if op(node) == "softmax"]
    for proposal in _proposals(softmaxes, selection, num_heads):
        if _computes(proposal, gates, cone, constant):
            return replace(proposal, form=_name(proposal, query))
    if selection is None:
        return _custom(None, None)
    run = run_router(gates, cone, selection.scores, constant)
    if run is None:
        return _custom(selection, num_heads - selection.candidates)
    selection = replace(selection, top_k=run.kept(selection.candidates, selection.top_k))
    ranked = read_ranked(run, selection, list(_ranked_logits(selection, softmaxes)))
    return _custom(selection, run.always_open(selection.candidates)) if ranked is None else ranked


def _custom(selection: Selection | None, num_shared: int | None) -> Router:
    return Router(
        form="custom",
        num_shared_heads=num_shared,
        top_k=None if selection is None else selection.top_k,
        selection=selection,
        reason="the router is of no published form; it stays as ordinary operators",
    )


def _proposals(
    softmaxes: list[Node], selection: Selection | None, num_heads: int
) -> Iterator[Router]:
    """Every assignment of logits to routed, shared and stage logits that fits by size."""
    if selection is None:
        base = Router("", num_heads, 0, None)
        yield from _assignments(base, [_logits(node) for node in softmaxes])
        return
    for routed in _ranked_logits(selection, softmaxes):
        base = Router(
            form="",
            num_shared_heads=num_heads - selection.candidates,
            top_k=selection.top_k,
            selection=selection,
            routed_logits=routed,
        )
        others = [node for node in softmaxes if routed.node not in ancestors(node, stop=set())]
        yield from _assignments(base, [_logits(node) for node in others])


def _logits(softmax: Node) -> Logits:
    source, dim = cast(Node, softmax.args[0]), argument(softmax, "dim", -1)
    assert isinstance(dim, int)
    return Logits(source, dim % rank(source))


def _ranked_logits(selection: Selection, softmaxes: list[Node]) -> Iterator[Logits]:
    """What may be the routed logits: the ranked scores, or what they are a softmax of."""
    ranked = through_views(selection.scores)
    if ranked in softmaxes:
        yield _logits(ranked)
    yield Logits(selection.scores, selection.dim)


def _assignments(base: Router, logits: list[Logits]) -> Iterator[Router]:
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


def _name(router: Router, query: Node | None) -> str:
    if router.routed_logits is None:
        return "shared"
    if router.gate_mode == "mask":
        return "query_norm" if _reads_query(router.routed_logits.node, query) else "mask"
    return "two_stage" if router.stage_logits is not None else "top_k"


def _reads_query(logits: Node, query: Node | None) -> bool:
    """True where the logits are made of the projection that the query is made of."""
    return query is not None and bool(_projections(logits) & _projections(query))


def _projections(node: Node) -> set[Node]:
    """The nearest products with weights that a tensor is computed from."""
    found, seen, stack = set[Node](), {node}, [node]
    while stack:
        current = stack.pop()
        if is_projection(current):
            found.add(current)
            continue
        fresh = [source for source in current.all_input_nodes if source not in seen]
        seen.update(fresh)
        stack.extend(fresh)
    return found


def _computes(proposal: Router, gates: Node, cone: list[Node], constant: Constants) -> bool:
    """Run the model's own router and the proposal on random logits and compare.

    In float64, to tell small deviations apart; routers that insist on float32 run in that.
    """
    logits = (proposal.routed_logits, proposal.shared_logits, proposal.stage_logits)
    inputs = [one.node for one in logits if one is not None]
    between = nodes_between(gates, set(inputs), set(cone), constant)
    if between is None:
        return False
    for dtype in (torch.float64, torch.float32):
        exact = dtype == torch.float64 and not any(rounds(node) for node in between)
        runs = [run_nodes(between, made_up(inputs, scale, dtype), constant) for scale in SCALES]
        errors = [_error(proposal, gates, run) for run in runs if run is not None]
        if len(errors) == len(SCALES):
            return max(errors) <= (_unseen(gates) if exact else 1e-5)
    return False


def _unseen(gates: Node) -> float:
    """Below what the gates' dtype can show of a gate of 1: the 1e-9 that is added to a sum before
    it divides."""
    return 1e-9 if tensor(gates).dtype == torch.float64 else torch.finfo(torch.float32).eps


def _error(proposal: Router, gates: Node, values: Values) -> float:
    """Largest difference between the gates that the model's router made of logits and the
    proposal's; infinite where they open other heads."""
    sources = (proposal.routed_logits, proposal.shared_logits, proposal.stage_logits)
    expected = values[gates]
    rows = {_rows(one.of(values)) for one in sources if one is not None}
    if rows != {_rows(expected)}:
        return math.inf
    computed = _propose(proposal, values, expected)
    if expected.shape != computed.shape or not torch.equal(expected != 0, computed != 0):
        return math.inf
    return float((expected.double() - computed.double()).abs().max())


def _propose(router: Router, values: Values, expected: torch.Tensor) -> torch.Tensor:
    def logits(one: Logits | None) -> torch.Tensor | None:
        return None if one is None else one.of(values).reshape(*expected.shape[:-1], -1)

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


def _extent(logits: Logits) -> int:
    return example_shape(logits.node)[logits.dim]
