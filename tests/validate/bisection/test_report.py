from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.validate.bisection.checkpoint import Checkpoint
from moh_deploy.validate.bisection.cure import Cure, KeptNode
from moh_deploy.validate.bisection.divergence import NodeError
from moh_deploy.validate.bisection.judge import Recorded
from moh_deploy.validate.bisection.locate import Between, Divergence
from moh_deploy.validate.bisection.places import NodePlace
from moh_deploy.validate.bisection.report import BisectReport, Repair
from tests.report.json_schema import assert_of_form
from tests.report.samples import parity_report

PLACE = NodePlace("blocks.0.up.MatMul", "MatMul", "blocks.0", "up")
BROKEN = NodeError(PLACE, before=math.inf, behind=math.nan, size=1e5, finite=False)
WRONG = Recorded("output 'y'", "y", math.nan, 1e-4, "output 'y' is NaN.")
FOUND = Divergence("precision", "the same graph", BROKEN, None, ("is larger",), (WRONG,))
ROUTER = "router of 'blocks.0.attn'"
BOUNDED = replace(
    FOUND,
    against=None,
    first=None,
    checkpoints=(
        Checkpoint(ROUTER, "gates.computed", agrees=True, exact=True, error=1e-7, reaction=1.0),
        Checkpoint("output 'y'", "y", agrees=False),
    ),
    between=Between((ROUTER,), "output 'y'", (PLACE,), (PLACE,), (PLACE,)),
)
REPAIR = Repair(
    Cure((KeptNode(PLACE, "its numbers reach 1e+05"),), smallest=True, trials=4),
    weights="the weights of the reference",
    bytes_before=10,
    bytes_after=12,
    flops_share=None,
    parity=parity_report(),
    written=Path("build/repaired"),
)
NOTHING = BisectReport(Path("build/half"), "float16", "the recorded runs", reasons=())
DIVERGED = replace(
    NOTHING,
    reasons=("output 'y' is NaN.",),
    target=0.001,
    divergence=FOUND,
    errors=(BROKEN,),
    why_no_repair="no set of nodes is enough.",
    notes=("gates were not fed.",),
)


@pytest.mark.parametrize(
    "report",
    [
        NOTHING,
        DIVERGED,
        replace(DIVERGED, repair=REPAIR, why_no_repair=None),
        replace(DIVERGED, repair=replace(REPAIR, flops_share=0.5, written=None)),
        replace(DIVERGED, divergence=replace(FOUND, against=None, first=None, step=BROKEN)),
        replace(DIVERGED, divergence=replace(FOUND, first=None)),
        replace(DIVERGED, divergence=BOUNDED),
    ],
)
def test_reports_are_of_the_form(report: BisectReport):
    assert_of_form("bisect", report.to_json())
