"""Find a router that ranks heads by another score than it weighs them by, such as a biased one."""

from __future__ import annotations

from moh_deploy.frontend.recognize.routers.program import RouterProgram
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.ops.routers import SCORED


def match(program: RouterProgram) -> Router | None:
    """Propose a mask of the scores and whatever weighs the heads that it keeps."""
    weighing = program.weighing
    if weighing is None or weighing.ranks_weights:
        return None
    return weighing.of_ranking(SCORED)
