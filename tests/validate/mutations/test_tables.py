"""What the tables count, and that rows come back from a file as they went."""

import json
import pickle
from argparse import Namespace
from dataclasses import replace
from functools import partial

from tests.validate.mutations.effects import Effect
from tests.validate.mutations.planting import Planted, planted_from
from tests.validate.mutations.runs import carry_out
from tests.validate.mutations.tables import fault_table, honest_table
from tests.validate.mutations.variations import AS_PRECISION_WRITES, Varied, varied_from
from tests.validate.mutations.verdicts import Verdict

REFUSED = Verdict(True, "layer 'a.1'", ("a.1",))
ROW = Planted(
    model="stack",
    precision="float16",
    layer="a.1",
    index=1,
    fault="scale + 1 %",
    effects=(Effect("attention/1", 0.01, 0.001), Effect("scores/1", 0.0, 0.001)),
    verdict=REFUSED,
)
ACCEPTED = replace(ROW, verdict=Verdict(False, ""))
IN_SCORES = replace(ACCEPTED, effects=(Effect("scores/1", 0.01, 0.001),))
NO_EFFECT = replace(ACCEPTED, effects=(Effect("attention/1", 0.002, 0.001),))
OTHER_LAYER = replace(ROW, verdict=Verdict(True, "layer 'a.2'", ("a.2",)))


def all_line(*rows: Planted) -> list[str]:
    """Return the last line of the table, split: planted, no effect, refused, accepted, in scores,
    named, others."""
    (line,) = (one for one in fault_table(rows) if one.startswith("ALL"))
    return line.split()[2:]


def test_each_row_counts_in_its_columns():
    rows = (ROW, ACCEPTED, IN_SCORES, NO_EFFECT, OTHER_LAYER)
    assert all_line(*rows) == ["4", "1", "2", "1", "1", "1", "1"]


def test_rows_of_a_right_package_that_is_refused_are_left_out():
    left_out = replace(ROW, model="other", right_is_refused=True)
    assert all_line(ROW, left_out) == ["1", "0", "1", "0", "0", "1", "0"]
    assert any("other in float16" in line for line in fault_table([ROW, left_out]))


def test_accepted_fault_is_listed_with_its_size():
    (line,) = (one for one in fault_table([ACCEPTED]) if one.startswith("  float16"))
    assert line.endswith("attention/1    1.0e-02, 10.0 times the floor")


def test_refused_variation_is_listed_with_the_reason():
    rows = [Varied("stack", "float16", "kernels", REFUSED)]
    assert next(line for line in honest_table(rows) if line.startswith("  ")).endswith("'a.1'")


def test_what_precision_does_not_write_is_left_out():
    rows = [Varied("stack", "float16", name, REFUSED) for name in ("kernels", AS_PRECISION_WRITES)]
    lines = list(honest_table(rows))
    assert next(line for line in lines if line.startswith("ALL")).split() == ["ALL", "0", "0"]
    assert lines[-1].startswith("  float16   stack ")


def test_rows_come_back_from_json():
    beside = replace(ROW, beside=Verdict(False, ""))
    for row in (ROW, beside):
        assert planted_from(json.loads(json.dumps(row.to_json()))) == row
    varied = Varied("stack", "float16", "kernels", REFUSED)
    assert varied_from(json.loads(json.dumps(varied.to_json()))) == varied


def test_what_is_run_can_be_sent_to_another_process():
    """A process that was spawned imports it; the `__main__` of a package it cannot import."""
    assert carry_out.__module__ == "tests.validate.mutations.runs"
    assert pickle.loads(pickle.dumps(partial(carry_out, options=Namespace(jobs=2)))) is not None
