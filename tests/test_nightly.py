"""Which tests a push runs: `nightly` ones not, and of sampled ones a part that stays the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import nightly

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
