"""Find a router whose shared heads have weights of their own, a sigmoid beside a softmax, say."""

from __future__ import annotations

from moh_deploy.frontend.recognize.routers import top_k
from moh_deploy.frontend.recognize.routers.program import RouterProgram
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.ops.routers import MIXED


def match(program: RouterProgram) -> Router | None:
    """Propose a top-k router of the routed heads, or a ranking and what weighs them."""
    weighing = program.weighing
    if weighing is None or weighing.has_one_shared_gate:
        return None
    found = top_k.with_factor(MIXED, weighing)
    if found is None and weighing.ranks_weights:
        found = weighing.of_ranking(MIXED)
    return found
