"""The benchmark of token convolutions: both sides compute the same, rows say what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType

import pytest

from tests.kernel_library import needs_library

pytestmark = needs_library


@pytest.fixture
def bench(
    load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The benchmark's module, with tiny shapes in place of its own."""
    bench = load_benchmark("token_conv_cpu")
    shapes = (bench.Shape("tiny", 2, 5, 20, True), bench.Shape("bare", 1, 4, 9, False))
    monkeypatch.setattr(bench, "SHAPES", shapes)
    return bench


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
