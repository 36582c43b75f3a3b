"""Find a router that opens the heads with the longest queries."""

from __future__ import annotations

from moh_deploy.frontend.recognize.routers import mask
from moh_deploy.frontend.recognize.routers.program import RouterProgram
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.ops.routers import QUERY_NORM


def match(program: RouterProgram) -> Router | None:
    """Propose a mask whose logits are made of the projection that makes the queries."""
    masks = mask.proposals(program, QUERY_NORM)
    return program.proven(router for router in masks if program.reads_query(router.routed_logits))
