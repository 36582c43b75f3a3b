"""Find a router that ranks heads by what it also weighs them by."""

from __future__ import annotations

from moh_deploy.frontend.recognize.routers.program import RouterProgram
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.ops.routers import RANKED


def match(program: RouterProgram) -> Router | None:
    """Propose a mask of the logits and whatever weighs the heads that it keeps."""
    # The search is the same as for `mixed` and `scored`: what weighs shared heads, and what was
    # ranked, tell which of the three it is.
    weighing = program.weighing
    if weighing is None or not (weighing.has_one_shared_gate and weighing.ranks_weights):
        return None
    return weighing.of_ranking(RANKED)
