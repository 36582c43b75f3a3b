"""What lets a run of the tables fail."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.validate.mutations.effects import Effect
from tests.validate.mutations.faults import FAULTS
from tests.validate.mutations.planting import Planted
from tests.validate.mutations.problems import IN_THE_DOCS, LEAST_REFUSED, problems
from tests.validate.mutations.verdicts import Verdict

ACCEPTED, CRASHED = Verdict(False, ""), Verdict(True, "KeyError", crashed=True)
REFUSED = Verdict(True, "layer 'a.1'", ("a.1",))
ROOT = Path(__file__).parents[3]

ROW = Planted(
    model="stack",
    precision="float16",
    layer="a.1",
    index=1,
    fault="scale + 1 %",
    effects=(Effect("attention/1", 0.01, 0.001), Effect("scores/1", 0.0, 0.001)),
    verdict=REFUSED,
)
IN_FLOAT32 = replace(ROW, precision="float32")
SCORES = (Effect("scores/1", 0.01, 0.001),)
SMALL = (Effect("attention/1", 0.002, 0.001),)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (IN_FLOAT32, None),
        (replace(IN_FLOAT32, verdict=ACCEPTED), "accepted, though 10.0 times the floor"),
        (replace(IN_FLOAT32, verdict=ACCEPTED, effects=SCORES), None),
        (replace(IN_FLOAT32, verdict=ACCEPTED, effects=SMALL), None),
        (replace(IN_FLOAT32, verdict=CRASHED), "verify crashed"),
        (replace(IN_FLOAT32, beside=ACCEPTED), None),
        (replace(IN_FLOAT32, beside=REFUSED), "the function bodies are refused, though kernels"),
        (replace(IN_FLOAT32, right_is_refused=True), "refused without any fault, too"),
        (replace(ROW, verdict=ACCEPTED), None),
        (replace(ROW, right_is_refused=True), None),
        (replace(ROW, verdict=CRASHED), "verify crashed"),
    ],
)
def test_each_row_is_judged(row: Planted, problem: str | None):
    found = list(problems([row], [], whole=False))
    start = f"stack in {row.precision}, a.1, scale + 1 %: "
    assert [item.removeprefix(start)[: len(problem or "")] for item in found] == (
        [] if problem is None else [problem]
    )


def test_documentation_has_these_figures():
    text = (ROOT / "docs" / "verify-method.md").read_text()
    figures = f"{len(FAULTS)} kinds in {len(IN_THE_DOCS)} models"
    assert figures in (ROOT / "docs" / "evidence.md").read_text()
    assert f"plants {len(FAULTS)} kinds of faults" in text
    assert f"Of {len(IN_THE_DOCS)} models" in text
    rates = dict(re.findall(r"^\| (b?float16) \| [\d,]+ \| [\d,]+ \(([\d.]+) %\)", text, re.M))
    assert {name: float(rate) - 1 for name, rate in rates.items()} == pytest.approx(
        {name: 100 * least for name, least in LEAST_REFUSED.items()}, abs=0.2
    )
