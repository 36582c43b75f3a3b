"""The export benchmark: what it counts, how it compares, and one run of it on a small model."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.conftest import BENCHMARKS, LoadBenchmark, run_script
from tests.nightly import nightly

BURN_CPU = "import time\nwhile time.process_time() < 0.4: pass"
HOLD_MEMORY = "import time; held = bytearray(200 << 20); time.sleep(0.5)"
IN_A_CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"

SMALL_MODEL = """
from models import DiffusionTransformer

def small():
    return DiffusionTransformer(dim=24, depth=1, num_heads=6, num_shared_heads=2, top_k=3)
"""


@pytest.fixture
def benchmark(load_benchmark: LoadBenchmark) -> ModuleType:
    """The benchmark's module."""
    return load_benchmark("export_cost")


def cost(benchmark: ModuleType, wall_s: float, *, largest_child_mib: float = 0.0) -> object:
    return benchmark.Cost(wall_s, 2 * wall_s, 100.0, largest_child_mib, 100.0)


def test_cpu_time_of_children_is_counted(benchmark: ModuleType):
    assert benchmark.measure([sys.executable, "-c", IN_A_CHILD, BURN_CPU]).cpu_s >= 0.4


@nightly
def test_memory_of_the_largest_child_is_told_apart(benchmark: ModuleType):
    alone = benchmark.measure([sys.executable, "-c", HOLD_MEMORY])
    below = benchmark.measure([sys.executable, "-c", IN_A_CHILD, HOLD_MEMORY])
    assert alone.peak_mib > 200
    assert below.peak_mib > 200
    assert alone.largest_child_mib == 0
    assert below.largest_child_mib > 200
    assert below.sum_mib > below.largest_child_mib


@nightly
def test_fork_of_a_process_is_no_child_with_memory_of_its_own(benchmark: ModuleType):
    cost = benchmark.measure([sys.executable, "-c", f"import os; os.fork(); {HOLD_MEMORY}"])
    assert cost.largest_child_mib == 0


def test_failing_command_is_no_measurement(benchmark: ModuleType):
    with pytest.raises(benchmark.CommandFailed, match=r"ended with 3:\nno such layer"):
        benchmark.measure([sys.executable, "-c", "import sys; print('no such layer'); sys.exit(3)"])


def test_medians_and_pairs_are_compared(benchmark: ModuleType):
    comparison = benchmark.Comparison(
        ours=tuple(cost(benchmark, wall_s) for wall_s in (2.0, 9.0, 3.0)),
        plain=tuple(cost(benchmark, wall_s) for wall_s in (1.0, 3.0, 2.0)),
    )
    figures = comparison.figures(lambda item: item.wall_s)
    assert (figures.ours, figures.plain, figures.ratio) == (3.0, 2.0, 1.5)
    assert figures.pair_ratios == (2.0, 3.0, 1.5)


def test_ratio_to_nothing_is_left_out(benchmark: ModuleType):
    ours, plain = cost(benchmark, 1.0, largest_child_mib=50.0), cost(benchmark, 1.0)
    comparison = benchmark.Comparison((ours,), (plain,))
    assert comparison.figures(lambda item: item.largest_child_mib).ratio is None


@nightly
def test_model_of_the_users_is_measured(tmp_path: Path):
    (tmp_path / "mine.py").write_text(SMALL_MODEL)
    done = run_script(
        "export_cost.py",
        *("--factory", "mine:small", "--code-dir", str(tmp_path), "--code-dir", str(BENCHMARKS)),
        *("--input", "latents:[batch=2,4,32,32]:float32", "--input", "timesteps:[batch=2]:int64"),
        *("--input", "labels:[batch=2]:int64", "--runs", "1", "--warm-ups", "0", "--json"),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["about"]["model"] == "mine:small"
    assert answer["costs"]["cpu"]["plain"] > 0
    # The proof runs in a process of its own; the plain export proves nothing.
    assert answer["costs"]["largest child"]["ours"] > 0
    assert answer["costs"]["largest child"]["plain"] == 0


@nightly
def test_export_that_fails_is_reported(tmp_path: Path):
    (tmp_path / "mine.py").write_text("import torch\n\ndef small(): return torch.nn.Linear(3, 3)\n")
    done = run_script(
        "export_cost.py",
        *("--factory", "mine:small", "--code-dir", str(tmp_path)),
        *("--input", "x:[batch=2,3]:float31"),
    )
    assert done.returncode == 1
    assert "dtype 'float31' is not supported" in done.stderr
    assert done.stdout == ""
