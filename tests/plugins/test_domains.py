"""Nodes of every body run on kernels: `moh.2` is to a kernel what `moh` is."""

from __future__ import annotations

import onnx
import pytest

from moh_deploy.ops import OPS
from tests.ops.case_models import case_model
from tests.ops.cases import OP_CASES
from tests.plugins.kernels import Kernels, assert_right, run_session


def moved(model: onnx.ModelProto, domain: str) -> onnx.ModelProto:
    """Return the model with its MoH node, and that node's body, in another domain."""
    for one in (*model.graph.node, *model.functions):
        one.domain = domain
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*one) for one in (("", 18), (domain, 1)))
    return model


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("domain", "runs_as"),
    [("moh", "kernel"), ("moh.2", "kernel"), ("moh.3", "kernel"), ("moh.4", "function")],
)
def test_domain_says_what_runs_a_node(kernels: Kernels, op: str, domain: str, runs_as: str):
    case = OP_CASES[op][0]
    model = moved(case_model(case), domain)
    session, runs = kernels.placed(model)
    assert set(runs.values()) == {runs_as}
    assert_right(case, run_session(session, case))
