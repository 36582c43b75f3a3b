from __future__ import annotations

from dataclasses import replace

import pytest

from moh_deploy.validate.compare.tolerances import tolerance_for
from moh_deploy.validate.compare.verify_labels import folded
from tests.validate.compare.test_parity_document import LAYER, OUTPUT, REPORT


def test_worst_batch_stands_for_all_and_counts_add_up():
    wrong = replace(OUTPUT, vectors="b", max_abs_error=1.0, reason="it differs.")
    layer = replace(
        LAYER,
        vectors="b",
        decisions=12,
        equal_decisions=10,
        excused_tokens=1,
        gate_error=5e-5,
        agreement=0.5,
        smallest_margin=1e-6,
        flip_margin=2e-6,
        forced=True,
        free_flips=3,
    )
    free = replace(LAYER, excused_tokens=2, smallest_margin=0.1)
    first = replace(REPORT, layers=(free,))
    rules = {"int64": tolerance_for("int64")}
    second = replace(REPORT, outputs=(wrong,), layers=(layer,), rules=rules)
    found = folded([first, second, first])
    (output,) = found.outputs
    assert output.vectors == "b, worst of 3 batches, 1 of which differ"
    assert (output.elements, output.reason) == (18, "it differs.")
    (both,) = found.layers
    assert both.vectors == "b, worst of 3 batches"
    assert (both.decisions, both.equal_decisions, both.excused_tokens) == (60, 58, 5)
    assert (both.forced, both.free_flips) == (True, 7)
    assert (both.smallest_margin, both.flip_margin) == (1e-6, 2e-6)
    assert both.agreement == pytest.approx((2 * 24 + 12 * 0.5) / 60)
    assert found.vector_sets == 3
    assert found.reasons == ("it differs.",)
    assert found.rules == {**first.rules, **rules}
    assert found.parts == ()


def test_what_is_judged_in_two_ways_stays_apart():
    forced = replace(OUTPUT, forced=True)
    free = replace(OUTPUT, tolerance=None)
    report = replace(REPORT, outputs=(forced, free))
    assert len(folded([report, report]).outputs) == 2


def test_one_batch_is_left_alone():
    assert folded([REPORT]) == REPORT


def test_batch_that_cannot_be_told_hides_no_fault():
    untold = replace(LAYER, undecided_tokens=1, reason="no data.")
    flipped = replace(LAYER, flipped_tokens=1, reason="other heads.", wrong=("choice",))
    found = folded([replace(REPORT, layers=(one,)) for one in (untold, flipped)])
    assert (found.answer, found.reasons) == ("NOT EQUAL", ("other heads.",))
