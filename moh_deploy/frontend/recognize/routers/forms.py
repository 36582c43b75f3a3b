"""Tell the form of a layer's router: each form of `moh_deploy.ops.routers` has a matcher here.

A matcher proposes what a router could compute, by the sizes of what it takes a softmax of.
`RouterProgram` proves the proposal by running both on the same logits.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

from torch.fx import Node

from moh_deploy.frontend.fx.graph import ancestors, argument, example_shape, named, op, rank
from moh_deploy.frontend.fx.known_values import Constants, fixed_value
from moh_deploy.frontend.fx.views import through_views
from moh_deploy.frontend.recognize.routers.program import RouterProgram, extent
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.frontend.recognize.routers.trial import nodes_between
from moh_deploy.frontend.recognize.routers.weighing import Weighing
from moh_deploy.ops import routers
from moh_deploy.ops.routers import RouterForm


def read_router(gates: Node, query: Node | None, constant: Constants) -> Router:
    """Read the router whose result are the gates [..., H].

    Args:
        query: The attention's query, to tell a router that reads it; None where it is not known.
    """
    program = RouterProgram(gates, query, constant)
    found = (MATCHERS[form.name](program) for form in routers.FORMS)
    return next(router for router in found if router is not None)


def _constant(program: RouterProgram) -> Router | None:
    """Compute the gates, if they are the same for all inputs and sizes."""
    gates = fixed_value(program.gates, program.constant)
    between = nodes_between(program.gates, set(), set(ancestors(program.gates)), program.constant)
    if gates is None or between is None:
        return None
    # Nothing is ranked when the package runs: no choice of it can be near a tie.
    found = _custom(program)
    return replace(found, form=routers.CONSTANT, selection=None, reason=None, fixed_gates=gates)


def _shared(program: RouterProgram) -> Router | None:
    """Propose the softmax over all heads, where nothing is ranked."""
    # Of a single head a softmax would be 1.
    heads, logits = program.num_heads, program.softmax_logits
    if program.selection is not None or heads < 2 or [extent(logit) for logit in logits] != [heads]:
        return None
    return program.proven([Router(routers.SHARED, heads, 0, None, shared_logits=logits[0])])


def _two_stage(program: RouterProgram) -> Router | None:
    """Propose every assignment of logits to shared heads and stages that fits by size."""

    def proposals() -> Iterator[Router]:
        for base, others in program.routed(routers.TWO_STAGE):
            shared = base.num_shared_heads
            # A softmax over one shared head is 1: the router need not have it.
            if shared == 1 and [extent(logits) for logits in others] == [2]:
                yield replace(base, stage_logits=others[0])
            for first, second in itertools.permutations(others) if len(others) == 2 else ():
                if extent(first) == shared and extent(second) == 2:
                    yield replace(base, shared_logits=first, stage_logits=second)

    return program.proven(proposals())


def _top_k(program: RouterProgram) -> Router | None:
    """Propose the form as published, and with another factor and shared gates of one number."""

    def published() -> Iterator[Router]:
        for base, others in program.routed(routers.TOP_K):
            # Shared heads have a softmax of their own, or gates of 1.
            shared = base.num_shared_heads or 0
            if not others:
                yield base
            if shared > 1 and [extent(logits) for logits in others] == [shared]:
                yield replace(base, shared_logits=others[0])

    found = program.proven(published())
    # One chosen head shares with no other: its gate is 1, as that of a mask. They differ for NaN,
    # which routers by norms make of padding.
    logits = None if found is None or found.top_k != 1 else found.routed_logits
    if logits is not None and program.is_finite_for_nan(logits):
        return None
    if found is not None or program.weighing is None or not program.weighing.has_one_shared_gate:
        return found
    return _with_factor(routers.TOP_K, program.weighing)


def _with_factor(form: RouterForm, weighing: Weighing) -> Router | None:
    """Return a router whose chosen heads share a number by their probabilities."""
    found = (
        weighing.router(form, logits, gate_mode="weighted") for logits in weighing.softmax_logits
    )
    return next((router for router in found if router is not None), None)


def _masking(form: RouterForm, *, by_query: bool) -> Callable[[RouterProgram], Router | None]:
    """Return the matcher of a mask whose logits are, or are not, made of what makes the queries."""

    def match(program: RouterProgram) -> Router | None:
        # Any other softmax would weigh something, and a mask weighs nothing.
        masks = (
            replace(base, gate_mode="mask") for base, others in program.routed(form) if not others
        )
        return program.proven(
            mask for mask in masks if program.reads_query(mask.routed_logits) == by_query
        )

    return match


# `ranked`, `mixed` and `scored` are found by one search: what weighs shared heads, and what was
# ranked, tell which of the three it is.


def _ranked(program: RouterProgram) -> Router | None:
    """Propose a mask of the logits and whatever weighs the heads that it keeps."""
    weighing = program.weighing
    if weighing is None or not (weighing.has_one_shared_gate and weighing.ranks_weights):
        return None
    return weighing.of_ranking(routers.RANKED)


def _mixed(program: RouterProgram) -> Router | None:
    """Propose a top-k router of the routed heads, or a ranking and what weighs them."""
    weighing = program.weighing
    if weighing is None or weighing.has_one_shared_gate:
        return None
    found = _with_factor(routers.MIXED, weighing)
    if found is None and weighing.ranks_weights:
        found = weighing.of_ranking(routers.MIXED)
    return found


def _scored(program: RouterProgram) -> Router | None:
    """Propose a mask of the scores and whatever weighs the heads that it keeps."""
    weighing = program.weighing
    if weighing is None or weighing.ranks_weights:
        return None
    return weighing.of_ranking(routers.SCORED)


def _custom(program: RouterProgram) -> Router:
    """Count the heads that are chosen and those that no token closes."""
    selection, run = program.counted, program.run
    num_shared = None
    if selection is not None:
        num_shared = program.num_heads - selection.candidates
        num_shared = num_shared if run is None else run.always_open(selection.candidates)
    return Router(
        form=routers.CUSTOM,
        num_shared_heads=num_shared,
        top_k=None if selection is None else selection.top_k,
        selection=selection,
        reason=_why_custom(program),
    )


def _why_custom(program: RouterProgram) -> str:
    joined, heads = through_views(program.gates), program.num_heads
    # Along the heads, the dimension that is last, shared ones are joined with those of one router.
    tokens = op(joined) == "cat" and argument(joined, "dim", 0) not in (-1, rank(joined) - 1)
    if tokens and example_shape(joined)[-1] == heads:
        return (
            f"{named(joined)} joins the gates of several routers that are not written alike, and a"
            " MoHRouter is one for all tokens; they stay as ordinary operators"
        )
    ranked, run = program.selection, program.run
    behind = 0 if ranked is None else heads - ranked.candidates
    if ranked is None or run is None or not 0 < behind < heads:
        return _OTHER
    if not run.closes_only_first(ranked.candidates, ranked.top_k):
        return _OTHER
    return (
        f"its shared heads, the last {behind} of {heads}, stand behind the routed ones, and a"
        " MoHRouter has them in front: let the model order its heads that way; the router stays as"
        " ordinary operators"
    )


_OTHER = "the router is of no published form; it stays as ordinary operators"


MATCHERS: dict[str, Callable[[RouterProgram], Router | None]] = {
    "constant": _constant,
    "shared": _shared,
    "two_stage": _two_stage,
    "top_k": _top_k,
    "query_norm": _masking(routers.QUERY_NORM, by_query=True),
    "mask": _masking(routers.MASK, by_query=False),
    "ranked": _ranked,
    "mixed": _mixed,
    "scored": _scored,
    "custom": _custom,
}
"""By name of the form; `moh_deploy.ops.routers` says in which order they are asked."""
