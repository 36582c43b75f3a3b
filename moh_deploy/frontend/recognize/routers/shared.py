"""Find a router whose heads are all shared: one softmax over all of them."""

from __future__ import annotations

from moh_deploy.frontend.recognize.routers.program import RouterProgram, extent
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.ops.routers import SHARED


def match(program: RouterProgram) -> Router | None:
    """Propose the softmax over all heads, where nothing is ranked."""
    # Of a single head a softmax would be 1.
    heads, logits = program.num_heads, program.softmax_logits
    if program.selection is not None or heads < 2 or [extent(logit) for logit in logits] != [heads]:
        return None
    return program.proven([Router(SHARED, heads, 0, None, shared_logits=logits[0])])
