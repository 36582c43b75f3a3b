"""The layer benchmark: its two layers compute the same, and its rows say what was measured."""

import sys
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests.benchmarks.conftest import LoadBenchmark, RowsOf
from tests.kernel_library import needs_library
from tests.nightly import nightly


@pytest.fixture
def bench(load_benchmark: LoadBenchmark, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark's module, with two tiny layers in place of its own."""
    bench = load_benchmark("layer_cpu")
    layer = sys.modules["layer_models"]._layer
    tiny = (
        layer("linear", 2, 4, 4, 9, 8, width=24),
        layer("query", 1, 4, 2, 9, 8, width=24, causal=True),
    )
    monkeypatch.setattr(bench, "LAYERS", tiny)
    return bench


@pytest.mark.parametrize("share", [1.0, 0.75, 0.5])
def test_tokens_use_the_share_of_heads_that_was_asked_for(bench: ModuleType, share: float):
    for layer in bench.LAYERS:
        choice = bench.choice_of(layer, share)
        assert choice.active == share * layer.shape.num_heads
        assert choice.num_shared == choice.active // 2


def test_share_is_rounded_to_whole_heads(bench: ModuleType):
    found = [bench.choice_of(bench.LAYERS[0], share).active for share in (0.9, 0.6, 0.1)]
    assert found == [4, 2, 1]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("index", [0, 1])
def test_our_layer_is_the_one_that_float64_computes(bench: ModuleType, index: int, sparse: bool):
    layer, rng = bench.LAYERS[index], np.random.default_rng(0)
    weights = bench.draw_weights(layer, rng)
    x = rng.standard_normal(layer.x_shape, dtype=np.float32)
    choice = bench.choice_of(layer, 0.5)
    model = bench.moh_model(layer, weights, choice, sparse_projections=sparse)
    onnx.checker.check_model(model)
    output, gates = ReferenceEvaluator(model).run(None, {"X": x})
    assert (np.count_nonzero(gates, axis=-1) == choice.active).all()
    np.testing.assert_allclose(output, bench.float64_output(layer, weights, x, gates), atol=1e-5)


def test_only_the_output_is_sparse_where_queries_choose(bench: ModuleType):
    for layer, expected in zip(bench.LAYERS, [2, 1], strict=True):
        weights = bench.draw_weights(layer, np.random.default_rng(0))
        choice = bench.choice_of(layer, 0.5)
        model = bench.moh_model(layer, weights, choice, sparse_projections=True)
        names = [node.op_type for node in model.graph.node if node.op_type.endswith("Projection")]
        assert len(names) == expected
        assert names[-1] == "MoHOutputProjection"


def test_every_dense_layer_is_the_one_that_float64_computes(bench: ModuleType):
    for layer in bench.LAYERS:
        rng = np.random.default_rng(0)
        weights = bench.draw_weights(layer, rng)
        x = rng.standard_normal(layer.x_shape, dtype=np.float32)
        gates = rng.random((*layer.x_shape[:2], 4), dtype=np.float32).round(1)
        models = bench.dense_models(layer, weights)
        assert ("GroupQueryAttention" in models) == layer.shape.is_causal
        for model in models.values():
            session = bench.plain_session(model.SerializeToString(), threads=1)
            (output,) = session.run(None, {"X": x, "gates": gates})
            expected = bench.float64_output(layer, weights, x, gates)
            np.testing.assert_allclose(output, expected, atol=1e-5)


def test_wrong_output_is_no_measurement(bench: ModuleType):
    expected = np.ones((2, 3))
    assert bench._error("moh", np.ones((2, 3), np.float32), expected) == 0
    with pytest.raises(bench.WrongOutput, match=r"moh: off by 0\.001, expected at most 2e-05"):
        bench._error("moh", np.full((2, 3), 1.001), expected)
    with pytest.raises(bench.WrongOutput, match="off by nan"):
        bench._error("moh", np.full((2, 3), np.nan), expected)


@nightly
@needs_library
def test_rows_have_what_was_measured(bench: ModuleType, rows_of: RowsOf):
    rows = rows_of(bench, "--active", "1", "0.5", "--threads", "1", "2", "--rounds", "2")
    assert [(row["layer"], row["threads"], row["active"]) for row in rows] == [
        (layer, threads, active)
        for layer in ("linear", "query")
        for threads in (1, 2)
        for active in (1.0, 0.5)
    ]
    for row in rows:
        assert row["ratio"] == row["dense_ms"] / row["moh_ms"] > 0
        assert row["dense"] in ("MultiHeadAttention", "Attention", "GroupQueryAttention")
        assert 0 < row["max_abs_error"] <= bench.BOUND


@pytest.mark.parametrize("name", ["layer_cpu", pytest.param("projection_cpu", marks=needs_library)])
def test_library_that_is_missing_ends_the_benchmark(
    name: str, load_benchmark: LoadBenchmark, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        load_benchmark(name).main(["--library", "no/such.so"])
    assert "no/such.so cannot be loaded" in capsys.readouterr().err
