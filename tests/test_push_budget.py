"""What a push may take: told by folder, and held by number."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.push_budget import BUDGETS, OTHERS, Spent, budgets, compared, excesses, spent_by_folder

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
    assert sum(one.seconds for one in named.values()) <= PUSH_SECONDS


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
