"""Find a top-k router: the best heads share the gates by their probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moh_deploy.frontend.recognize.routers.program import RouterProgram, extent
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.frontend.recognize.routers.weighing import Weighing
from moh_deploy.ops.routers import TOP_K, RouterForm


def match(program: RouterProgram) -> Router | None:
    """Propose the form as published, and with another factor and shared gates of one number."""
    found = program.proven(_published(program))
    # One chosen head shares with no other: its gate is 1, as that of a mask. They differ for NaN,
    # which routers by norms make of padding.
    logits = None if found is None or found.top_k != 1 else found.routed_logits
    if logits is not None and program.is_finite_for_nan(logits):
        return None
    if found is not None or program.weighing is None or not program.weighing.has_one_shared_gate:
        return found
    return with_factor(TOP_K, program.weighing)


def _published(program: RouterProgram) -> Iterator[Router]:
    for base, others in program.routed(TOP_K):
        # Shared heads have a softmax of their own, or gates of 1.
        shared = base.num_shared_heads or 0
        if not others:
            yield base
        if shared > 1 and [extent(logits) for logits in others] == [shared]:
            yield replace(base, shared_logits=others[0])


def with_factor(form: RouterForm, weighing: Weighing) -> Router | None:
    """Return a router whose chosen heads share a number by their probabilities."""
    found = (
        weighing.router(form, logits, gate_mode="weighted") for logits in weighing.softmax_logits
    )
    return next((router for router in found if router is not None), None)
