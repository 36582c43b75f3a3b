"""The projection benchmark: both sides compute the same, and its rows say what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from tests.kernel_library import needs_library
from tests.nightly import nightly

pytestmark = needs_library


@pytest.fixture
def bench(
    load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The benchmark's module, with a tiny layer in place of its own."""
    bench = load_benchmark("projection_cpu")
    monkeypatch.setattr(bench, "LAYERS", (bench.Layer("tiny", 9, 20, 4, 8),))
    return bench


@nightly
def test_a_row_for_each_projection_and_share(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--active", "1", "0.5", "--threads", "1", "2", "--rounds", "2")
    assert bench.main([*options, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["op"], row["threads"], row["active"]) for row in rows] == [
        (op, threads, active)
        for op in ("query", "output")
        for threads in (1, 2)
        for active in (1.0, 0.5)
    ]
    for row in rows:
        assert row["ratio"] == row["moh_ms"] / row["dense_ms"] > 0
        assert 0 < row["max_abs_error"] < 1e-5


def test_weights_of_4_bits_are_measured_beside_the_like(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--active", "0.5", "--threads", "1", "--rounds", "1", "--bits", "4", "--json")
    assert bench.main(options) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["op"], row["bits"]) for row in rows] == [("query", 4), ("output", 4)]
    # What is multiplied was rounded to 8 bits.
    assert all(1e-4 < row["max_abs_error"] < 0.1 for row in rows)


def test_table_has_a_line_for_each_projection(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--threads", "1", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert [word in out for word in ("query", "output", "f = 0.75")] == [True] * 3


def test_wrong_output_is_no_measurement(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "BOUND", 1e-12)
    assert bench.main(["--threads", "1", "--rounds", "1"]) == 1
    assert "tiny, query: off by" in capsys.readouterr().err


def test_rows_of_closed_heads_are_0_for_the_output_projection(bench: ModuleType) -> None:
    feeds = bench._draw_inputs(bench.LAYERS[0], "output", 0.5, np.random.default_rng(0))
    by_head = feeds["X"].reshape(1, 9, 4, 8)
    np.testing.assert_array_equal(by_head.any(axis=-1), feeds["gates"] != 0)


def test_library_that_is_missing_ends_the_benchmark(
    bench: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--library", "no/such.so"])
    assert "no/such.so cannot be loaded" in capsys.readouterr().err
