"""Find a two-stage router: a softmax of two logits weighs shared heads against routed ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from moh_deploy.frontend.recognize.routers.program import RouterProgram, extent
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.ops.routers import TWO_STAGE


def match(program: RouterProgram) -> Router | None:
    """Propose every assignment of logits to shared heads and stages that fits by size."""
    return program.proven(_proposals(program))


def _proposals(program: RouterProgram) -> Iterator[Router]:
    for base, others in program.routed(TWO_STAGE):
        shared = base.num_shared_heads
        # A softmax over one shared head is 1: the router need not have it.
        if shared == 1 and [extent(logits) for logits in others] == [2]:
            yield replace(base, stage_logits=others[0])
        for first, second in itertools.permutations(others) if len(others) == 2 else ():
            if extent(first) == shared and extent(second) == 2:
                yield replace(base, shared_logits=first, stage_logits=second)
