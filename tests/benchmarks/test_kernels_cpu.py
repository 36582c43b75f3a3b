"""Benchmarks of single kernels: both sides compute the same, and rows say what was measured."""

from types import ModuleType

import numpy as np
import pytest

from moh_deploy import native
from tests.benchmarks.conftest import LoadBenchmark, RowsOf
from tests.kernel_library import needs_library
from tests.nightly import nightly

pytestmark = needs_library
ONCE = ("--threads", "1", "--rounds", "1")


@pytest.fixture
def aggregated(load_benchmark: LoadBenchmark, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    bench = load_benchmark("aggregated_cpu")
    monkeypatch.setattr(bench, "STAGES", (bench.Stage("tiny", 5, 2, head_dim=3, pooled=4),))
    return bench


@pytest.fixture
def projection(load_benchmark: LoadBenchmark, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    bench = load_benchmark("projection_cpu")
    monkeypatch.setattr(bench, "LAYERS", (bench.Layer("tiny", 9, 20, 4, 8),))
    return bench


@pytest.fixture
def token_conv(load_benchmark: LoadBenchmark, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    bench = load_benchmark("token_conv_cpu")
    shapes = (bench.Shape("tiny", 2, 5, 20, True), bench.Shape("bare", 1, 4, 9, False))
    monkeypatch.setattr(bench, "SHAPES", shapes)
    return bench


@pytest.fixture
def masks(load_benchmark: LoadBenchmark, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    bench = load_benchmark("attention_masks")
    monkeypatch.setattr(bench, "SHAPES", (bench.Shape(150, 4, 2, 8),))
    return bench


def test_row_of_each_form_of_a_mask(masks: ModuleType, rows_of: RowsOf):
    library = str(native.kernel_library())
    rows = rows_of(masks, "--shapes", "0", "--open", "0.5", *ONCE, "--beside", library)
    assert [row["form"] for row in rows] == list(masks.FORMS)
    for row in rows:
        assert 0 < row["max_abs_error"] < masks.BOUND
        assert row["ratio"] == row["ms"] / rows[0]["ms"]
        assert (row["beside_ms"] is None) == ("key_ranges" in row["form"])


def test_row_of_aggregated_attention_for_each_share(aggregated: ModuleType, rows_of: RowsOf):
    rows = rows_of(aggregated, "--open", "1", "0.5", "--rounds", "2")
    found = [(row["shape"], row["batch"], row["open_share"]) for row in rows]
    assert found == [("tiny", 2, 1.0), ("tiny", 2, 0.5)]
    for row in rows:
        assert row["ratio"] == pytest.approx(row["function_ms"] / row["kernel_ms"])
        assert row["max_abs_error"] < aggregated.BOUND


def test_flops_of_aggregated_attention_are_those_of_open_rows(aggregated: ModuleType):
    (stage,) = aggregated.STAGES
    inputs, seen = stage.inputs(batch=1, share=1.0), 9 + 4
    assert stage.flops(inputs) == 25 * 2 * (2 * 2 * seen * 3 + 2 * 9 * 3)


@nightly
def test_row_of_each_projection_and_share(projection: ModuleType, rows_of: RowsOf):
    options = ("--active", "1", "0.5", "--threads", "1", "2", "--rounds", "2")
    rows = rows_of(projection, *options)
    assert [(row["op"], row["threads"], row["active"]) for row in rows] == [
        (op, threads, active)
        for op in ("query", "output")
        for threads in (1, 2)
        for active in (1.0, 0.5)
    ]
    for row in rows:
        assert row["ratio"] == row["moh_ms"] / row["dense_ms"] > 0
        assert 0 < row["max_abs_error"] < 1e-5


def test_weights_of_4_bits_are_measured_beside_the_like(projection: ModuleType, rows_of: RowsOf):
    rows = rows_of(projection, "--active", "0.5", *ONCE, "--bits", "4")
    assert [(row["op"], row["bits"]) for row in rows] == [("query", 4), ("output", 4)]
    # What is multiplied was rounded to 8 bits.
    assert all(1e-4 < row["max_abs_error"] < 0.1 for row in rows)


def test_rows_of_closed_heads_are_0_for_the_output_projection(projection: ModuleType):
    rng = np.random.default_rng(0)
    feeds = projection._draw_inputs(projection.LAYERS[0], "output", 0.5, rng)
    by_head = feeds["X"].reshape(1, 9, 4, 8)
    np.testing.assert_array_equal(by_head.any(axis=-1), feeds["gates"] != 0)


def test_row_of_a_token_convolution_for_each_shape(token_conv: ModuleType, rows_of: RowsOf):
    rows = rows_of(token_conv, "--threads", "1", "2", "--rounds", "2")
    assert [(row["shape"], row["threads"]) for row in rows] == [
        (shape, threads) for shape in ("tiny", "bare") for threads in (1, 2)
    ]
    for row in rows:
        assert row["speedup"] == row["body_ms"] / row["moh_ms"] > 0
        assert 0 <= row["max_abs_difference"] < 1e-5


@pytest.mark.parametrize(
    ("name", "options", "shown", "hidden"),
    [
        ("projection", ONCE, ("query", "output", "f = 0.75"), ()),
        ("token_conv", ("--shapes", "bare", *ONCE), ("bare",), ("tiny",)),
        ("masks", ("--shapes", "0", "--forms", "no mask", *ONCE), ("is_causal",), ("window",)),
    ],
)
def test_table_has_a_line_for_each(
    name: str,
    options: tuple[str, ...],
    shown: tuple[str, ...],
    hidden: tuple[str, ...],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
):
    assert request.getfixturevalue(name).main([*options]) == 0
    out = capsys.readouterr().out
    assert [word for word in (*shown, *hidden) if word in out] == [*shown]


@pytest.mark.parametrize(
    ("name", "options", "bound", "message"),
    [
        ("aggregated", ("--open", "1", "--rounds", "1"), 0.0, "tiny: off by"),
        ("projection", ONCE, 1e-12, "tiny, query: off by"),
        ("token_conv", ONCE, 1e-12, "tiny: off by"),
        ("masks", ("--shapes", "0", *ONCE), 1e-12, "is_causal: off by"),
    ],
)
def test_wrong_output_is_no_measurement(
    name: str,
    options: tuple[str, ...],
    bound: float,
    message: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    bench = request.getfixturevalue(name)
    monkeypatch.setattr(bench, "BOUND", bound)
    assert bench.main([*options]) == 1
    assert message in capsys.readouterr().err
