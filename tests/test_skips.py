from __future__ import annotations

from pathlib import Path
from types import ModuleType

import onnx
import onnxruntime
import pytest

from tests.nightly import sampled
from tests.skips import MACHINE, Expected, expected_skips, unexpected_skips

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
    assert {name for one in expected_skips() for name in one.where} <= set(MACHINE)


@pytest.mark.parametrize(
    ("package", "condition"),
    [(onnx, "with onnx before 1.23"), (onnxruntime, "with ONNX Runtime before 1.25")],
    ids=["onnx", "onnxruntime"],
)
def test_versions_are_compared_as_such(
    monkeypatch: pytest.MonkeyPatch, package: ModuleType, condition: str
):
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
