"""What costs look like in words, and break-even of layers by the times of `tune`.

Pages are opened in tests/report/html.
"""

from dataclasses import replace

import pytest

from moh_deploy.decision.cost.predicted import tuned_break_even
from moh_deploy.package import Manifest, Tuning
from tests.decision.cost.files import cost_report
from tests.handmade_package import LAYER, MANIFEST
from tests.report.json_schema import assert_of_form


def test_answer_stands_first_and_sizes_where_an_alternative_is_slower_are_named():
    report = cost_report()
    text = report.to_markdown()
    assert text.splitlines()[0] == report.headline[1]
    assert "'moh' is faster for 50 % of requests, slower for 50 % (batch=8)." in text
    either = cost_report(paired=0.05).to_markdown()
    assert "'moh' is faster for 50 % of requests, slower for 0 %; of 50 % it cannot" in either
    assert "A month is extrapolated from 2 days" in text
    assert "that c7i.2xlarge is as fast is taken for granted" in text
    assert_of_form("cost", report.to_json())
    saved, back, _ = report.document().facts
    assert (saved.name, saved.value) == ("saved a month by moh", "100 USD")
    assert (back.value, back.note) == ("80 months", "55.2 to 151")
    assert "'moh' against 'dense': slower from batch 7.2 on (6 to 8)." in text


def tuned(*layer_ms: dict[str, float], model_ms: tuple[dict[str, float], ...] = ()) -> Manifest:
    """Return the manifest of a package of one layer, timed at batch 1, 4, 16, ..."""
    sizes = tuple({"batch": 4**index, "seq": 5} for index in range(len(layer_ms)))
    tuning = Tuning("measured", "a machine", sizes=sizes, layer_ms=(layer_ms,), model_ms=model_ms)
    return replace(MANIFEST, layers=(LAYER,), tuning=tuning)


def test_layer_and_model_break_even_where_times_cross():
    manifest = tuned(
        {"dense": 1.0, "sparse": 1.25, "projected": 2.0},
        {"dense": 5.0, "sparse": 4.5, "projected": 4.0},
        model_ms=({"dense": 2.0, "chosen": 1.9}, {"dense": 8.0, "chosen": 7.0}),
    )
    layer, whole = tuned_break_even(manifest)
    assert (layer.arm, layer.others) == (LAYER.path, {"seq": 5})
    # The fastest way to skip counts: ln 1.25 below and above, so the middle of 1 and 4.
    assert [gain.gain for gain in layer.gains] == pytest.approx([-0.25, 0.2])
    assert layer.outcome == "faster from batch 2 on"
    assert (whole.arm, whole.outcome) == (
        "all layers",
        "faster throughout: no crossing between batch 1 and 4",
    )


def test_package_that_was_not_tuned_at_two_sizes_tells_nothing():
    assert tuned_break_even(replace(MANIFEST, tuning=None)) == ()
    assert tuned_break_even(tuned({"dense": 1.0, "sparse": 2.0})) == ()
    # Nor does a layer that was not timed in both ways.
    assert tuned_break_even(tuned({"dense": 1.0}, {"dense": 2.0})) == ()


def test_report_says_what_was_timed_or_how_to():
    report = replace(cost_report(), predicted=())
    times = ({"dense": 1.0, "sparse": 1.25}, {"dense": 5.0, "sparse": 4.0})
    timed = replace(report, tuned=tuned_break_even(tuned(*times)))
    (row,) = [line for line in timed.to_markdown().splitlines() if line.startswith("| blocks")]
    assert "-25.0 %, 20.0 %" in row
    assert "faster from batch 2 on" in row
    assert_of_form("cost", timed.to_json())
    assert "moh-deploy tune at two batch sizes" in replace(report, tuned=()).to_markdown()


def test_size_of_0_lies_on_no_line():
    """An empty cache was timed, too."""
    slower, faster = {"dense": 1.0, "sparse": 1.25}, {"dense": 5.0, "sparse": 4.0}
    manifest = tuned(slower, faster, faster)
    assert manifest.tuning is not None
    sizes = tuple({"past": past} for past in (0, 1, 4))
    manifest = replace(manifest, tuning=replace(manifest.tuning, sizes=sizes))
    (layer,) = tuned_break_even(manifest)
    assert layer.outcome == "faster throughout: no crossing between past 1 and 4"
