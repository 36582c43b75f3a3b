"""Find a router that opens the best heads with gates of 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moh_deploy.frontend.recognize.routers.program import RouterProgram
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.ops.routers import MASK, RouterForm


def match(program: RouterProgram) -> Router | None:
    """Propose a mask of anything but norms of the queries, which is a form of its own."""
    masks = proposals(program, MASK)
    return program.proven(
        router for router in masks if not program.reads_query(router.routed_logits)
    )


def proposals(program: RouterProgram, form: RouterForm) -> Iterator[Router]:
    """Yield what may be ranked for a mask, where nothing else has a softmax."""
    # Any other softmax would weigh something, and a mask weighs nothing.
    for base, others in program.routed(form):
        if not others:
            yield replace(base, gate_mode="mask")
