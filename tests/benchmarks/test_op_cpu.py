"""The op benchmark: its inputs, its candidates, how it compares, and one run of it."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from moh_deploy import native
from moh_deploy.ops import OPS
from moh_deploy.runtime.kernel_use import KernelUse
from tests.benchmarks.conftest import LoadBenchmark, run_script
from tests.nightly import nightly, sampled

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "build" / "plugins" / native.LIBRARY_NAME
KERNEL = KernelUse(Path("kernels.so"), None, "avx2")
TINY = ("2,4,4,9,8", "2,4,2,9,8", "2,4,2,9,8,causal", "decode")

needs_library = pytest.mark.skipif(
    native.kernel_library() is None and not BUILT.is_file(),
    reason=f"no kernel library: {native.why_no_library()}, and there is no {BUILT}",
)


@pytest.fixture
def bench(load_benchmark: LoadBenchmark) -> ModuleType:
    """The benchmark's module."""
    return load_benchmark("op_cpu")


def tiny(bench: ModuleType, name: str) -> object:
    if name == "decode":
        return bench.Shape("decode", 2, 4, 2, 1, 9, 8)
    return bench.parse_shape(name)


def prepared(bench: ModuleType, name: str, *active: float, dtype: str = "float32") -> object:
    """Return two sets of inputs of a tiny shape, on one thread."""
    shape = tiny(bench, name)
    sets = [bench.draw_inputs(shape, active, dtype, seed=seed) for seed in range(2)]
    return bench.Bench(shape, dtype, 1, sets)


def timing(*runs_ms: float) -> object:
    return sys.modules["op_timing"].Timing(runs_ms, 1e-6)


@pytest.mark.parametrize("active", [1, 0.9, 0.75, 0.5, 0.29, 0])
def test_share_of_open_gates_is_exact(bench: ModuleType, active: float):
    for name in ("vit", "dit-24", "2,100,100,9,8", "decode-small"):
        shape = bench.parse_shape(name)
        gates = sys.modules["op_inputs"].draw_gates(shape, active, np.random.default_rng(1))
        assert gates.shape == (shape.batch, shape.seq_len, shape.num_heads)
        assert abs(np.count_nonzero(gates) - active * gates.size) <= 0.5


def test_half_of_the_active_heads_is_shared_and_the_rest_differs(bench: ModuleType):
    shape = bench.parse_shape("vit")
    gates = sys.modules["op_inputs"].draw_gates(shape, 0.5, np.random.default_rng(1))
    is_open = gates[0] != 0  # [S, H]
    assert (is_open.sum(axis=1) == 8).all()
    assert is_open[:, :4].all()
    assert not is_open[:, 4:].all(axis=0).any()
    assert is_open[:, 4:].any(axis=0).all()


def test_work_is_counted_for_open_gates_and_visible_keys(bench: ModuleType):
    shape = bench.parse_shape("1,2,1,3,8,causal")
    gates = np.array([[[1, 0], [1, 1], [0, 0]]])  # Queries that see 1, 2 and 3 keys.
    assert shape.flops(gates) == 4 * 8 * (1 * 1 + 2 * 2 + 0 * 3)
    assert replace(shape, is_causal=False).flops(gates) == 4 * 8 * (3 + 2 * 3)


@pytest.mark.parametrize("name", TINY)
def test_float64_result_is_that_of_the_op(bench: ModuleType, name: str):
    prepared_bench = prepared(bench, name, 0.5)
    shape, inputs = prepared_bench.shape, prepared_bench.sets[0]
    attributes = {
        "q_num_heads": shape.num_heads,
        "kv_num_heads": shape.num_kv_heads,
        "scale": shape.scale,
        "is_causal": int(shape.is_causal),
    }
    arrays = (inputs.query, inputs.key, inputs.value, inputs.gates[0.5])
    (reference,) = OPS["MoHAttention"].reference(arrays, attributes)
    np.testing.assert_allclose(inputs.expected(shape, 0.5), reference, rtol=1e-12, atol=1e-12)


@sampled(4)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", TINY)
def test_every_dense_candidate_computes_gated_attention(bench: ModuleType, name: str, dtype: str):
    prepared_bench = prepared(bench, name, 0.5, dtype=dtype)
    candidates = [
        prepared_bench.dense(dense_name, 0.5) for dense_name in prepared_bench.dense_names()
    ]
    timings = bench.measure(prepared_bench, candidates, 3)
    assert [len(item.runs_ms) for item in timings] == [3] * len(candidates)
    assert max(item.max_abs_error for item in timings) > 0  # They do compute in that dtype.


def test_grouped_query_attention_takes_part_where_it_computes_the_same(bench: ModuleType):
    names = {name: prepared(bench, name, 1.0).dense_names() for name in TINY}
    assert [name for name in TINY if "GroupQueryAttention" in names[name]] == [*TINY[2:]]


def test_dtype_without_an_operator_is_reported(bench: ModuleType, capsys):
    prepared_bench = prepared(bench, TINY[0], 0.5, dtype="bfloat16")
    found = [item.name for item in bench._dense(prepared_bench, 0.5)]
    assert "torch SDPA" in found
    assert "MultiHeadAttention" not in found
    assert "without MultiHeadAttention: [ONNXRuntimeError]" in capsys.readouterr().err


def test_wrong_output_is_no_measurement(bench: ModuleType):
    prepared_bench = prepared(bench, TINY[0], 0.5)
    right = prepared_bench.dense("Attention", 0.5)

    def spoil(index: int) -> None:
        right.run(index)
        right.output[-1, -1, -1] += 1e-3

    with pytest.raises(bench.WrongOutput, match=r"Attention, 2,4,4,9,8, active 0.5: off by 0.001"):
        bench.measure(prepared_bench, [replace(right, run=spoil)], 1)


def test_output_that_is_not_written_is_no_measurement(bench: ModuleType):
    prepared_bench = prepared(bench, TINY[0], 0.5)
    idle = replace(prepared_bench.dense("Attention", 0.5), run=lambda index: None)
    with pytest.raises(bench.WrongOutput, match="off by nan"):
        bench.measure(prepared_bench, [idle], 1)


def test_unselected_row_of_ours_is_exactly_zero(bench: ModuleType):
    prepared_bench = prepared(bench, TINY[0], 0.5)
    right = prepared_bench.dense("Attention", 0.5)

    def nearly(index: int) -> None:
        right.run(index)
        right.output[right.output == 0] = 1e-9

    theirs = replace(right, run=nearly)
    bench.measure(prepared_bench, [theirs], 1)
    with pytest.raises(bench.WrongOutput, match="an unselected row is not exactly 0"):
        bench.measure(prepared_bench, [replace(theirs, name="moh", kernel=KERNEL)], 1)


def result(bench: ModuleType, threads: int) -> object:
    """Two shares of ours that took 2 (minimum 1) and 1 ms, the best fused operator 3 (2) ms."""
    ours = [
        bench.Ours(KERNEL, 1.0, 4e6, timing(1.0, 2.0, 9.0)),
        bench.Ours(KERNEL, 0.5, 2e6, timing(1.0, 1.0, 1.0)),
    ]
    dense = {
        "decomposed": timing(0.5, 0.5, 0.5),
        "Attention": timing(2.0, 3.0, 4.0),
        "torch SDPA": timing(5.0, 5.0, 5.0),
    }
    return bench.Result(bench.parse_shape("vit"), "float32", threads, ours, dense)


def test_best_fused_operator_is_compared_by_medians_of_cpu_time(bench: ModuleType):
    full, half = bench.rows_of([result(bench, 1)], 10.0)
    assert (full.best_fused, full.best_fused_ms, full.moh_ms, full.ratio) == (
        *("Attention", 3.0, 2.0, 1.5),
    )
    assert half.ratio == 3.0
    assert half.t_over_dense == 0.5
    assert full.peak_share == pytest.approx(4e6 / 2e-3 / 10e9)
    assert full.thread_speedup is None
    assert full.clock == "cpu"


def test_threads_are_compared_by_the_least_wall_time(bench: ModuleType):
    row = bench.rows_of([result(bench, 1), result(bench, 2)], 10.0)[2]
    assert (row.threads, row.clock, row.moh_ms, row.moh_median_ms) == (2, "wall", 1.0, 2.0)
    assert row.ratio == 2.0
    assert row.thread_speedup == 1.0
    assert row.peak_share == pytest.approx(4e6 / 1e-3 / 20e9)


def test_share_of_an_unknown_peak_is_left_out(bench: ModuleType):
    assert bench.rows_of([result(bench, 1)], None)[0].peak_share is None


def test_machine_without_a_compiler_has_no_peak(bench: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert str(bench._Peak.of(None)) == "unknown (there is no C compiler 'cc': give --peak)"
    assert str(bench._Peak.of(116.7)) == "116.7 GFLOP/s (as given)"


def test_shape_of_ones_own_is_read_and_an_unknown_one_refused(bench: ModuleType):
    shape = bench.parse_shape("2,4,2,9,8,causal")
    sizes = (shape.batch, shape.num_heads, shape.num_kv_heads, shape.seq_len, shape.head_dim)
    assert (sizes, shape.kv_len, shape.is_causal) == ((2, 4, 2, 9, 8), 9, True)
    with pytest.raises(ValueError, match=r"'vitt' is not known; expected one of vit, dit, "):
        bench.parse_shape("vitt")
    with pytest.raises(ValueError, match="H=4 is not a multiple of Hkv=3"):
        bench.parse_shape("2,4,3,9,8")


@nightly
def test_library_that_is_missing_ends_the_benchmark():
    done = run_script("op_cpu.py", "--library", "no/such.so")
    assert done.returncode == 2
    assert "no/such.so cannot be loaded" in done.stderr
    assert done.stdout == ""


@nightly
@needs_library
def test_rows_have_what_was_measured():
    done = run_script(
        "op_cpu.py",
        *("--shape", "2,4,2,9,8,causal", "decode-small", "--active", "1", "0.5"),
        *("--threads", "1", "2", "--rounds", "2", "--peak", "100", "--json"),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["shape"], row["threads"], row["active"]) for row in rows] == [
        (shape, threads, active)
        for shape in ("2,4,2,9,8,causal", "decode-small")
        for threads in (1, 2)
        for active in (1.0, 0.5)
    ]
    for row in rows:
        assert row["best_fused"] in row["dense_ms"]
        assert row["ratio"] == row["best_fused_ms"] / row["moh_ms"] > 0
        assert row["peak_share"] > 0
        assert row["max_abs_error"] <= 1e-5
