import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.conftest import LoadBenchmark
from tests.nightly import nightly

SIZES = "--layers 1 --hidden 64 --inner 64 --heads 8 --kv-heads 2 --vocab 96 --positions 128"


# Exporters warn.
@pytest.mark.filterwarnings("ignore")
@nightly
def test_both_generate_the_same_tokens_in_turn(
    load_benchmark: LoadBenchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    given = f"--keep {tmp_path} --tokens 20 --batch 1 3 --rounds 2 {SIZES} --json"
    assert load_benchmark("generate").main(given.split()) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["loop"], row["batch"]) for row in rows] == [
        ("generate", 1),
        ("onnxruntime-genai", 1),
        ("generate", 3),
        ("onnxruntime-genai", 3),
    ]
    assert all(row["per_second"] > 0 and row["wall_per_second"] > 0 for row in rows)
    assert rows[1]["share"] == 1


@pytest.mark.parametrize("other", [False, True])
def test_rates_are_of_the_tokens_behind_the_first(
    load_benchmark: LoadBenchmark, monkeypatch: pytest.MonkeyPatch, other: bool
):
    module, clock = load_benchmark("generate"), iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(module.time, "process_time", lambda: next(clock))

    def loop(steps: int):
        def run(package, bundle, prompts, count, marks):
            for _ in range(steps):
                marks.mark(3)
            return [[steps if other else 7]] * len(prompts)

        return run

    monkeypatch.setattr(module, "_generated", loop(5))
    monkeypatch.setattr(module, "_by_genai", loop(9))
    options = Namespace(sizes=module.SMALL, rounds=2, tokens=5)
    if other:
        with pytest.raises(module.WrongOutput, match=r"a batch of 3: .* other tokens"):
            module._measured(Path(), Path(), 3, options)
        return
    ours, genai = module._measured(Path(), Path(), 3, options)
    # Both clocks go on by half a second each time that one is asked: a step takes one.
    assert (ours.per_second, ours.wall_per_second, genai.per_second) == (3, 3, 3)
    assert (ours.share, genai.wall_share) == (1, 1)
