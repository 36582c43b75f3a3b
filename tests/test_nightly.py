"""Which tests a push runs: `nightly` ones not, and of sampled ones a part that stays the same."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import onnx
import onnxruntime
import pytest

from tests import nightly
from tests.nightly import sampled
from tests.push_budget import BUDGETS, OTHERS, Spent, budgets, compared, excesses, spent_by_folder
from tests.skips import MACHINE, Expected, expected_skips, unexpected_skips

CASES = """
import pytest

@pytest.mark.sampled(4)
@pytest.mark.parametrize("second", range(4))
@pytest.mark.parametrize("first", range(6))
def test_pairs(first, second):
    pass

@pytest.mark.sampled(100)
@pytest.mark.parametrize("one", [1, 2])
def test_few(one):
    pass

@pytest.mark.sampled(2)
@pytest.mark.parametrize("one", [1, 2, pytest.param(3, marks=pytest.mark.nightly)])
def test_some(one):
    pass

@pytest.mark.nightly
def test_long():
    pass

def test_short():
    pass
"""


@pytest.fixture
def names_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makeconftest("from tests.conftest import *")
    pytester.makeini(
        "[pytest]\nmarkers =\n    nightly: at night\n    sampled(count): one in so many\n"
    )

    def run(*options: str) -> set[str]:
        pytester.makepyfile(CASES)
        arguments = ("-p", "no:cacheprovider", "--collect-only", "-q", *options)
        ran = pytester.runpytest_inprocess(*arguments)
        assert ran.ret == 0
        return {line.rpartition("::")[2] for line in ran.outlines if "::" in line}

    return run


def _pairs(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("test_pairs")}


def test_night_runs_everything(names_run):
    assert len(names_run("--nightly")) == 24 + 2 + 3 + 2


def test_push_runs_one_in_so_many_and_at_least_one(names_run):
    names = names_run()
    assert len(_pairs(names)) == 24 / 4
    assert len([name for name in names if name.startswith("test_few")]) == 1
    assert len([name for name in names if name.startswith("test_some")]) == 1
    assert "test_some[3]" not in names
    assert "test_short" in names
    assert "test_long" not in names


def test_sample_is_spread_over_both_parameters(names_run):
    chosen = [name.removeprefix("test_pairs[").removesuffix("]") for name in _pairs(names_run())]
    firsts, seconds = zip(*(pair.split("-") for pair in chosen), strict=True)
    assert len(set(firsts)) > 2
    assert len(set(seconds)) > 2


@dataclass(frozen=True)
class Case:
    """As much of an item of pytest as is asked for."""

    name: str
    nodeid: str = "test_it"

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return nightly.sampled(4).mark if name == "sampled" else None


def _few(count: int) -> set[str]:
    cases = [Case(f"test_it[{number}]") for number in range(count)]
    chosen, _ = nightly.split_by_run(cases)  # type: ignore[arg-type]
    return {case.name for case in chosen}


def test_one_more_case_moves_one_other_at_most():
    for count in range(6, 40):
        few, more = _few(count), _few(count + 1)
        assert len(few & more) >= len(few) - 1


LISTED = [Expected("no nvcc.*", ("without nvcc",)), Expected("root writes", at_most=2)]


def _nowhere(name: str) -> bool:
    return False


def _everywhere(name: str) -> bool:
    return True


def test_what_is_listed_may_be_skipped():
    counts = {"no nvcc: set CUDA_HOME": 700, "root writes": 2}
    assert unexpected_skips(counts, LISTED, _everywhere) == []


@pytest.mark.parametrize(
    ("counts", "holds", "problem"),
    [
        ({"I had no time": 1}, _everywhere, "1 x I had no time: not in expected_skips.yaml"),
        ({"no nvcc": 4}, _nowhere, "4 x no nvcc: expected without nvcc only"),
        ({"root writes": 3}, _everywhere, "3 x root writes: expected at most 2"),
        ({"why: root writes": 1}, _everywhere, "1 x why: root writes: not in expected_skips.yaml"),
    ],
)
def test_other_skips_are_named(counts: dict[str, int], holds, problem: str):
    assert unexpected_skips(counts, LISTED, holds) == [problem]


def test_what_two_reasons_of_an_entry_have_is_added_up():
    counts = {"root writes": 1, "root may write": 2}
    listed = [Expected("root (writes|may write)", at_most=2)]
    assert len(unexpected_skips(counts, listed, _everywhere)) == 1


def test_the_list_speaks_of_machines_as_they_are_known():
    assert {name for skip in expected_skips() for name in skip.where} <= set(MACHINE)


@pytest.mark.parametrize(
    ("package", "condition"),
    [(onnx, "with onnx before 1.23"), (onnxruntime, "with ONNX Runtime before 1.25")],
    ids=["onnx", "onnxruntime"],
)
def test_versions_are_compared_as_such(monkeypatch, package: ModuleType, condition: str):
    last = condition.rpartition(" ")[-1]
    for version, is_older in ((f"{last}.0", False), ("1.9.1", True), ("2.0", False)):
        monkeypatch.setattr(package, "__version__", version)
        assert MACHINE[condition]() is is_older


@sampled(2)
@pytest.mark.parametrize(
    ("options", "code"), [([], 0), (["--expected-skips"], 1)], ids=["alone", "in_ci"]
)
def test_a_session_with_an_unknown_skip_fails_where_it_is_asked_to(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makeconftest("from tests.conftest import *")
    pytester.makepyfile("import pytest\ndef test_it():\n    pytest.skip('I had no time')")
    ran = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
    assert ran.ret == code
    ran.stdout.fnmatch_lines(["*1 x I had no time: not in expected_skips.yaml"])
    ran.assert_outcomes(skipped=1)


# What a push may take: told by folder, and held by number.


TESTS = Path(__file__).parent
PUSH_SECONDS = 440
"""Two quiet cores run these in 220 s; with collecting that is what a push has for its tests."""


def _report(name: str, duration: float, when: str = "call") -> pytest.TestReport:
    return pytest.TestReport(name, (name, 0, name), {}, "passed", None, when, duration=duration)  # type: ignore[arg-type]


def test_phases_of_a_test_are_added_up_and_counted_once():
    reports = [
        _report("tests/ops/test_a.py::test_a", 1.0, "setup"),
        _report("tests/ops/test_a.py::test_a", 2.0),
        _report("tests/ops/test_a.py::test_b", 4.0),
        _report("tests/test_main.py::test_c", 8.0),
    ]
    spent = spent_by_folder(reports)
    assert spent == {"ops": Spent(2, 7.0), OTHERS: Spent(1, 8.0)}


def test_more_tests_than_allowed_are_named_with_what_to_do():
    spent = {"ops": Spent(11, 1.0), "cli": Spent(5, 1.0)}
    (problem,) = excesses(spent, {"ops": Spent(10, 9), "cli": Spent(5, 1)})
    assert problem.startswith("tests/ops: 11 tests in a push, at most 10. ")
    assert "nightly" in problem


def test_longer_than_the_budget_is_shown_and_no_failure():
    spent, allowed = {"ops": Spent(10, 99.0)}, {"ops": Spent(10, 9)}
    assert excesses(spent, allowed) == []
    assert [line.split() for line in compared(spent, allowed)][1:] == [
        ["ops", "10", "10", "99.0", "9"],
        ["all", "10", "10", "99.0", "9"],
    ]


def test_budgets_are_of_folders_that_there_are_and_fit_into_a_push():
    named = budgets()
    assert {name for name in named if not (TESTS / name).is_dir()} == {OTHERS}
    assert sum(item.seconds for item in named.values()) <= PUSH_SECONDS


def test_every_folder_of_tests_has_a_budget():
    folders = {path.parent.relative_to(TESTS).parts[0] for path in TESTS.glob("*/**/test_*.py")}
    assert folders - {"gpu"} <= set(budgets())


@pytest.mark.parametrize(("at_most", "code"), [(1, 1), (2, 0)])
def test_a_session_with_more_tests_fails_where_it_is_asked_to(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, at_most: int, code: int
):
    monkeypatch.setenv("PYTHONPATH", str(TESTS.parent))
    budget = pytester.path / BUDGETS.name
    budget.write_text(f"{OTHERS}: {{tests: {at_most}, seconds: 1}}\n")
    pytester.makeconftest(
        "from pathlib import Path\n"
        "import tests.push_budget\n"
        f"tests.push_budget.budgets.__defaults__ = (Path({str(budget)!r}),)\n"
        "from tests.conftest import *\n"
    )
    pytester.makepyfile("def test_one():\n    pass\ndef test_two():\n    pass\n")
    ran = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--push-budget")
    assert ran.ret == code
    ran.stdout.fnmatch_lines(["others * 2 * 1 *"] if code else ["others * 2 * 2 *"])
    if code:
        ran.stdout.fnmatch_lines(["tests/others: 2 tests in a push, at most 1.*"])
