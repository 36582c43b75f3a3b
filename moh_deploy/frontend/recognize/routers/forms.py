"""Tell the form of a layer's router: each form has a matcher, in a file that is called like it."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from torch.fx import Node

from moh_deploy.frontend.fx.known_values import Constants
from moh_deploy.frontend.recognize.routers.program import RouterProgram
from moh_deploy.frontend.recognize.routers.router import Router
from moh_deploy.ops.routers import FORMS, RouterForm


class Matcher(Protocol):
    """Finds one form of router."""

    def __call__(self, program: RouterProgram) -> Router | None: ...


def read_router(gates: Node, query: Node | None, constant: Constants) -> Router:
    """Read the router whose result are the gates [..., H].

    Args:
        constant: Value of a constant node.
        query: The attention's query, to tell a router that reads it; None where it is not known.
    """
    program = RouterProgram(gates, query, constant)
    found = (matcher_of(form)(program) for form in FORMS)
    return next(router for router in found if router is not None)


def matcher_of(form: RouterForm) -> Matcher:
    """Return what finds routers of a form: `match` of the module that is called like it."""
    matcher: Matcher = import_module(f"{__package__}.{form.name}").match
    return matcher
