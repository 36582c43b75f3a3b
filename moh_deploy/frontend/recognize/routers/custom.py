"""Describe a router of no known form, as far as it can be run."""

from __future__ import annotations

from moh_deploy.frontend.fx.graph import argument, example_shape, named, op, rank
from moh_deploy.frontend.fx.views import through_views
from moh_deploy.frontend.recognize.routers.program import RouterProgram
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.ops.routers import CUSTOM

_OTHER = "the router is of no published form; it stays as ordinary operators"


def match(program: RouterProgram) -> Router:
    """Count the heads that are chosen and those that no token closes."""
    selection, run = program.counted, program.run
    num_shared = None
    if selection is not None:
        num_shared = program.num_heads - selection.candidates
        num_shared = num_shared if run is None else run.always_open(selection.candidates)
    return Router(
        form=CUSTOM,
        num_shared_heads=num_shared,
        top_k=None if selection is None else selection.top_k,
        selection=selection,
        reason=_reason(program),
    )


def _reason(program: RouterProgram) -> str:
    joined = through_views(program.gates)
    # Along the heads, the dimension that is last, shared ones are joined with those of one router.
    tokens = op(joined) == "cat" and argument(joined, "dim", 0) not in (-1, rank(joined) - 1)
    if tokens and example_shape(joined)[-1] == program.num_heads:
        return (
            f"{named(joined)} joins the gates of several routers that are not written alike, and a"
            " MoHRouter is one for all tokens; they stay as ordinary operators"
        )
    selection, run = program.selection, program.run
    if selection is None or run is None or not 0 < selection.candidates < program.num_heads:
        return _OTHER
    behind, heads = program.num_heads - selection.candidates, program.num_heads
    if run.closes_only_first(selection.candidates, selection.top_k):
        return (
            f"its shared heads, the last {behind} of {heads}, stand behind the routed ones, and a"
            " MoHRouter has them in front: let the model order its heads that way; the router stays"
            " as ordinary operators"
        )
    return _OTHER
