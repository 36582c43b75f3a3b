"""What lets a run of the tables fail."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.validate.mutations.__main__ import main
from tests.validate.mutations.effects import Effect
from tests.validate.mutations.faults import FAULTS
from tests.validate.mutations.planting import Planted
from tests.validate.mutations.problems import IN_THE_DOCS, LEAST_REFUSED, problems
from tests.validate.mutations.subjects import SUBJECTS
from tests.validate.mutations.test_tables import REFUSED, ROW
from tests.validate.mutations.variations import AS_PRECISION_WRITES, Varied
from tests.validate.mutations.verdicts import Verdict

ACCEPTED, CRASHED = Verdict(False, ""), Verdict(True, "KeyError", crashed=True)
ROOT = Path(__file__).parents[3]

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
    assert [one.removeprefix(start)[: len(problem or "")] for one in found] == (
        [] if problem is None else [problem]
    )


def test_variation_that_is_refused_is_a_problem_but_for_what_precision_does_not_write():
    name = SUBJECTS[0].name
    kernels = Varied(name, "float16", "kernels", REFUSED)
    (found,) = problems([], [kernels], whole=False)
    assert found == f"{name} in float16, kernels: refused, though it is right"
    other = replace(kernels, model="other")
    assert not list(problems([], [other], whole=False))
    for one in (replace(other, precision="float32"), replace(other, verdict=CRASHED)):
        assert len(list(problems([], [one], whole=False))) == 1
    assert not list(problems([], [replace(kernels, verdict=ACCEPTED)], whole=False))
    unwritten = replace(kernels, variation=AS_PRECISION_WRITES)
    assert not list(problems([], [kernels, unwritten], whole=False))


def everywhere(row: Planted, *, accepted: int = 0) -> list[Planted]:
    """Return the row for every fault in a model of the docs, the first of them accepted."""
    model = SUBJECTS[0].name
    rows = [replace(row, model=model, fault=fault) for fault in FAULTS]
    return [replace(one, verdict=ACCEPTED) for one in rows[:accepted]] + rows[accepted:]


def test_a_whole_run_plants_every_fault():
    assert not list(problems(everywhere(ROW), [], whole=True))
    (found,) = problems(everywhere(ROW)[1:], [], whole=True)
    assert found == f"{next(iter(FAULTS))}: planted nowhere"


def test_a_whole_run_refuses_most_in_half_precision():
    assert not list(problems(everywhere(ROW, accepted=1), [], whole=True))
    (found,) = problems(everywhere(ROW, accepted=2), [], whole=True)
    assert (
        found == f"float16: {len(FAULTS) - 2} of {len(FAULTS)} faults are refused, fewer than 97%"
    )


def test_a_whole_run_judges_most_models():
    one, other = (replace(ROW, model=model.name, right_is_refused=True) for model in SUBJECTS[:2])
    judged: Sequence[Planted] = everywhere(replace(ROW, model=SUBJECTS[0].name))
    assert not list(problems([*judged, other], [], whole=True))
    (found,) = problems([*everywhere(one), other], [], whole=True)
    assert found.endswith("are refused")


@pytest.mark.parametrize(("verdict", "code"), [(REFUSED, 0), (ACCEPTED, 1)])
def test_exit_code_says_whether_there_are_problems(
    verdict: Verdict, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "rows.json"
    rows = {"faults": [replace(IN_FLOAT32, verdict=verdict).to_json()], "honest": []}
    path.write_text(json.dumps(rows))
    assert main(["--read", str(path)]) == code
    assert f"problems: {code}" in capsys.readouterr().out


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
