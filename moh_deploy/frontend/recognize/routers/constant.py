"""Find a router that sees no input: its gates are known when the model is exported."""

from __future__ import annotations

from dataclasses import replace

from moh_deploy.frontend.fx.graph import ancestors
from moh_deploy.frontend.fx.known_values import fixed_value
from moh_deploy.frontend.recognize.routers import custom
from moh_deploy.frontend.recognize.routers.program import RouterProgram
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.frontend.recognize.routers.trial import nodes_between
from moh_deploy.ops.routers import CONSTANT


def match(program: RouterProgram) -> Router | None:
    """Compute the gates, if they are the same for all inputs and sizes."""
    gates = fixed_value(program.gates, program.constant)
    between = nodes_between(program.gates, set(), set(ancestors(program.gates)), program.constant)
    if gates is None or between is None:
        return None
    # Nothing is ranked when the package runs: no choice of it can be near a tie.
    found = custom.match(program)
    return replace(found, form=CONSTANT, selection=None, reason=None, fixed_gates=gates)
