"""The benchmark of token convolutions: both sides compute the same, rows say what was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from moh_deploy import native

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NEIGHBOURS = (
    *("token_conv_cpu", "interleaving", "op_timing", "op_candidates", "op_models", "op_inputs"),
    *("ort_session", "process_cost"),
)

pytestmark = pytest.mark.skipif(
    native.kernel_library() is None, reason=f"no kernel library: {native.why_no_library()}"
)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark's module, with tiny shapes in place of its own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    bench = import_module("token_conv_cpu")
    shapes = (bench.Shape("tiny", 2, 5, 20, True), bench.Shape("bare", 1, 4, 9, False))
    monkeypatch.setattr(bench, "SHAPES", shapes)
    yield bench
    for name in NEIGHBOURS:
        sys.modules.pop(name, None)


def test_a_row_for_each_shape_and_number_of_threads(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--threads", "1", "2", "--rounds", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["shape"], row["threads"]) for row in rows] == [
        (shape, threads) for shape in ("tiny", "bare") for threads in (1, 2)
    ]
    for row in rows:
        assert row["speedup"] == row["body_ms"] / row["moh_ms"] > 0
        assert 0 <= row["max_abs_difference"] < 1e-5


def test_table_has_a_line_for_each_shape(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--shapes", "bare", "--threads", "1", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "bare" in out
    assert "tiny" not in out


def test_outputs_that_differ_are_no_measurement(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "BOUND", 1e-12)
    assert bench.main(["--threads", "1", "--rounds", "1"]) == 1
    assert "tiny: off by" in capsys.readouterr().err
