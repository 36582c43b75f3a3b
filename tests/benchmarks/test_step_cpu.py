from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.system.npz import Array
from tests.benchmarks.conftest import LoadBenchmark

# genai's builder takes every product with as many outputs as the vocabulary has words for the head;
# NNCF's blocks are of 128.
SIZES = "--layers 1 --hidden 128 --inner 128 --heads 8 --kv-heads 2 --vocab 96 --positions 256"


# Exporters of the peers warn: PyTorch's, OpenVINO's, genai's.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.nightly
@pytest.mark.parametrize(("weights", "bound"), [("float32", 1e-5), ("int8", 0.2), ("int4", 0.5)])
def test_each_takes_the_same_step(
    load_benchmark: LoadBenchmark,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    weights: str,
    bound: float,
):
    given = f"--keep {tmp_path} --past 9 20 --threads 1 --open 8 6 --groups sessions --repeats 2"
    assert (
        load_benchmark("step_cpu").main(
            [*given.split(), *SIZES.split(), "--weights", weights, "--json"]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    names = [row["name"] for row in rows if row["past"] == 9]
    assert names[:2] == ["ours, 8 of 8 open", "ours, 6 of 8 open"]
    assert ("plain export" in names) == (weights == "float32")
    assert all(row["ms"] > 0 for row in rows)
    assert all(0 < row["error"] < bound for row in rows)


def test_candidate_that_computes_something_else_is_told(load_benchmark: LoadBenchmark):
    class Off:
        name = "off"

        def logits(self) -> Array:
            return np.array([1.0, 2.0, 3.01])

    module, expected = load_benchmark("step_cpu"), np.array([1.0, 2.0, 3.0])
    with pytest.raises(module.WrongOutput, match="off"):
        module._error(Off(), expected, "float32")
    assert module._error(Off(), expected, "int4") == pytest.approx(0.01 / 3)
