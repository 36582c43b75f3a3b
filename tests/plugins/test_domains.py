"""Nodes of every body run on kernels: `moh.2` is to a kernel what `moh` is."""

from dataclasses import replace

import onnx
import pytest

from moh_deploy.ops import OPS
from tests.nightly import sampled
from tests.ops.case_models import case_model
from tests.ops.cases import OP_CASES
from tests.plugins.kernels import Kernels, assert_right, run_session


def moved(model: onnx.ModelProto, domain: str) -> onnx.ModelProto:
    """Return the model with its MoH node, and that node's body, in another domain."""
    for function in (*model.graph.node, *model.functions):
        function.domain = domain
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(*item) for item in (("", 18), (domain, 1)))
    return model


@sampled(6)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("asked", "domain", "runs_as"),
    [
        (None, "moh", "kernel"),
        (None, "moh.8", "kernel"),
        (None, "moh.9", "function"),
        ("moh.12,moh.345", "moh.345", "kernel"),
        ("moh.12,moh.345", "moh", "function"),
        ("", "moh", "function"),
    ],
)
def test_domain_says_what_runs_a_node(
    kernels: Kernels, op: str, asked: str | None, domain: str, runs_as: str
):
    case = OP_CASES[op][0]
    model = moved(case_model(case), domain)
    session, runs = replace(kernels, domains=asked).placed(model)
    assert set(runs.values()) == {runs_as}
    assert_right(case, run_session(session, case))


@pytest.mark.parametrize("domain", ["far", "moh.1", "moh.02", "moh.", "moh.dense", "moh.2x"])
def test_domain_that_is_none_of_ours_is_refused(kernels: Kernels, domain: str):
    with pytest.raises(Exception, match=f"moh.domains has '{domain}'; expected moh, moh.2"):
        replace(kernels, domains=f"moh,{domain}").options()
