import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks.conftest import LoadBenchmark
from tests.nightly import nightly

SIZES = "--depth 1 --dim 64 --vocab 96"


# torch.compile of a fresh process takes its time.
@nightly
def test_candidates_run_in_processes_of_their_own(
    load_benchmark: LoadBenchmark, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = f"--keep {tmp_path} --forms float --lengths 24 --threads 1 --rounds 1 --repeats 1"
    candidates = "--candidates moh eager plain_onnx"
    assert (
        load_benchmark("decoder_prompt").main(
            [*given.split(), *SIZES.split(), *candidates.split(), "--json"]
        )
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["moh", "eager", "plain_onnx"]
    assert all(row["ms"] > 0 and row["peak_mib"] > row["run_mib"] >= 0 for row in rows)
    assert [row["error"] < 1e-5 for row in rows] == [True] * 3


def test_masks_are_written_differently_and_hide_the_same(load_benchmark: LoadBenchmark):
    module = load_benchmark("prompt_decoder")
    heads = {"num_heads": 4, "num_kv_heads": 2, "num_shared_heads": 1, "top_k": 1}
    models = [
        module.prompt_decoder(mask=mask, dim=16, depth=2, vocab_size=11, **heads).eval()
        for mask in module.MASKS
    ]
    seen = torch.ones(2, 7, dtype=torch.bool)
    seen[1, 5:] = False
    found = []
    for model in models:
        model.load_state_dict(models[0].state_dict())
        with torch.no_grad():
            found.append(model(torch.arange(14).view(2, 7) % 11, seen))
    for logits in found[1:]:
        torch.testing.assert_close(logits, found[0])


def test_logits_of_another_model_are_refused(load_benchmark: LoadBenchmark, tmp_path: Path):
    module = load_benchmark("decoder_prompt")
    form = module.Form("float", tmp_path, module.Sizes(), None)
    expected = np.arange(12.0).reshape(3, 4)
    np.save(module._logits_file(form, "eager", 3), expected)
    said = [
        {"ms": [3.0, 1.0], "run_mib": 1.0, "peak_mib": 9.0},
        {"ms": [2.0], "run_mib": 3.0, "peak_mib": 9.0},
    ]
    # One position of three chose another head.
    flipped = expected + [[0], [0], [5]]
    np.save(module._logits_file(form, "moh", 3), flipped)
    row = module._row(form, 3, 1, "moh", said)
    assert (row.ms, row.run_mib, row.error) == (2, 2, 0)
    assert module._row(form, 3, 2, "moh", said).ms == 1
    np.save(module._logits_file(form, "moh", 3), expected * 1.01)
    with pytest.raises(module.WrongOutput, match="float, 3 tokens, moh"):
        module._row(form, 3, 1, "moh", said)
    assert module._row(form, 3, 1, "compile", [{"absent": "no compiler"}]).ms is None
