import math
from dataclasses import replace
from pathlib import Path

import pytest

from moh_deploy.validate.bisection.checkpoint import Checkpoint
from moh_deploy.validate.bisection.divergence import NodeError
from moh_deploy.validate.bisection.judge import Recorded
from moh_deploy.validate.bisection.locate import Between, Divergence
from moh_deploy.validate.bisection.mixed_precision import KeptNode, MixedPrecision
from moh_deploy.validate.bisection.places import NodePlace
from moh_deploy.validate.bisection.report import BisectReport, Repair, divergence_text
from tests.nightly import sampled
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
    MixedPrecision((KeptNode(PLACE, "its numbers reach 1e+05"),), smallest=True, trials=4),
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


@sampled(3)
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


FIRST, SECOND, LAST = "router of 'a'", "router of 'b'", "output 'y'"
CHECKPOINTS = tuple(Checkpoint(item, item, agrees=False) for item in (FIRST, SECOND, LAST))
SECOND_WRONG = Recorded(SECOND, SECOND, 1.0, 0.1, "it is not equal.")


def place(index: int, module: str = "a") -> NodePlace:
    return NodePlace(f"{module}.{index}", "Add", module, f"{module}_{index}")


def found(between: Between | None, wrong: Recorded = SECOND_WRONG) -> Divergence:
    return Divergence("graph", None, None, None, (), (wrong,), CHECKPOINTS, between)


def test_place_is_between_what_agrees_and_what_does_not():
    text = divergence_text(found(Between((FIRST,), SECOND, (place(1), place(2)), (place(1),), ())))
    assert text == (
        "diverges between the router of 'a', which agrees to rounding, and the router of 'b': one"
        " of 2 nodes; if no other one is wrong, this node: Add 'a.1' in 'a': the graph computes"
        " something else than the original model. --reference DIR, a float32 package of the model"
        " that is right, leads to the node."
    )


def test_what_agrees_behind_it_is_no_bound_to_the_left():
    text = divergence_text(found(Between((FIRST, LAST), SECOND, (place(1),), (place(1),), ())))
    assert text.startswith(
        "diverges in what leads to the router of 'b', and not to the router of 'a', the output 'y',"
        " which agree to rounding: this node: Add 'a.1' in 'a': "
    )


def test_nothing_is_said_to_be_right_that_nothing_proves_right():
    text = divergence_text(found(Between((), SECOND, (place(1),), (place(1),), ())))
    assert "before the router of 'b'; no other recorded value proves anything there right" in text
    assert "agree" not in text


def test_nodes_whose_faults_do_not_show_are_named_too():
    one = Between((FIRST,), SECOND, (place(2),), (place(2),), (place(1),))
    text = divergence_text(found(one))
    assert (
        "this node: Add 'a.2' in 'a'; or this node before, where a fault need not show in"
        " the router of 'a': Add 'a.1' in 'a'"
    ) in text
    assert found(one).suspects == (place(2), place(1))


def test_many_nodes_are_counted_by_module():
    nodes = tuple(place(index, f"m{index // 2}") for index in range(24))
    text = divergence_text(found(Between((), LAST, nodes, nodes, ())))
    assert "one of 24 nodes: 2 in 'm0', 2 in 'm1'," in text
    assert "2 in 'm7' and others in 4 more modules: " in text


def test_errors_that_add_up_are_not_said_to_be_wrong():
    near = replace(SECOND_WRONG, reason=None)
    text = divergence_text(found(Between((FIRST,), SECOND, (place(1),), (place(1),), ()), near))
    assert text.startswith(
        "with the reference gates fed every recorded value is within its limit, errors add up; what"
        " the router of 'b' is off by arises between the router of 'a', which agrees"
    )


def test_reference_is_asked_for_where_nothing_tells_and_not_where_there_is_one():
    text = divergence_text(found(None))
    assert text.startswith("diverges, and nothing that was recorded tells where: ")
    assert text.endswith("leads to the node.")
    assert "--reference" not in divergence_text(replace(found(None), against="build/right"))
    for cause in ("optimisation", "float32"):  # A reference rounds, too.
        assert "--reference" not in divergence_text(replace(found(None), cause=cause))
