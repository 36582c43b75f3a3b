"""The benchmark of aggregated attention: its rows say what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType

import pytest

from tests.kernel_library import needs_library


@pytest.fixture
def bench(
    load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The benchmark's module, with one tiny shape in place of its own."""
    bench = load_benchmark("aggregated_cpu")
    monkeypatch.setattr(bench, "STAGES", (bench.Stage("tiny", 5, 2, head_dim=3, pooled=4),))
    return bench


@needs_library
def test_rows_say_what_was_measured(bench: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--json", "--open", "1", "0.5", "--rounds", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["shape"], row["batch"], row["open_share"]) for row in rows] == [
        ("tiny", 2, 1.0),
        ("tiny", 2, 0.5),
    ]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["function_ms"] / row["kernel_ms"])
        assert row["max_abs_error"] < bench.BOUND


@needs_library
def test_wrong_output_is_no_row(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "BOUND", 0.0)
    assert bench.main(["--open", "1", "--rounds", "1"]) == 1
    assert "tiny: off by" in capsys.readouterr().err


def test_flops_are_those_of_open_rows(bench: ModuleType) -> None:
    (stage,) = bench.STAGES
    inputs = stage.inputs(batch=1, share=1.0)
    seen = 9 + 4
    assert stage.flops(inputs) == 25 * 2 * (2 * 2 * seen * 3 + 2 * 9 * 3)
