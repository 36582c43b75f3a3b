"""The model benchmark: its models, its candidates, how it compares, and one run of it."""

import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from moh_deploy.config.export_config import load_config
from moh_deploy.frontend.inputs.arguments import flattened
from moh_deploy.frontend.inputs.given_inputs import given_values
from moh_deploy.runtime.kernel_use import choose_kernels
from tests.benchmarks.conftest import LoadBenchmark, run_script
from tests.nightly import nightly, sampled

COLUMNS = [
    *("model", "batch", "threads", "moh_ms", "moh_openvino_ms", "eager_ms", "plain_onnx_ms"),
    *("compile_ms", "openvino_ms", "vs_eager", "vs_plain_onnx", "best_peer", "vs_best_peer"),
]
BATCHES = (2, 1)
HAS_OPENVINO = importlib.util.find_spec("openvino") is not None


@pytest.fixture
def bench(load_benchmark: LoadBenchmark) -> ModuleType:
    """The benchmark's module."""
    return load_benchmark("model_cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one run of the benchmark has left weights, packages, plain exports and its rows."""
    folder = tmp_path_factory.mktemp("models")
    done = run_script(
        "model_cpu.py",
        *("--models", "vit-form", "--keep", str(folder), "--batch", "2", "1", "--threads", "1"),
        *("--repeats", "2", "--peers", "eager", "plain_onnx", "openvino", "--json"),
    )
    assert done.returncode == 0, done.stderr
    (folder / "rows.json").write_text(done.stdout)
    return folder


@pytest.fixture
def prepared(bench: ModuleType, folder: Path) -> object:
    """The model, ready to be measured, from the files of that run."""
    request = bench.Request(package=folder / "vit-form" / "package")
    return bench.prepare(bench.SUBJECTS["vit-form"], request, folder / "vit-form")


@nightly
def test_rows_have_what_was_measured(folder: Path):
    rows = json.loads((folder / "rows.json").read_text())
    assert [(row["model"], row["batch"], row["threads"]) for row in rows] == [
        ("vit-form", batch, 1) for batch in BATCHES
    ]
    for row in rows:
        assert list(row) == COLUMNS
        ours = min(row["moh_ms"], row["moh_openvino_ms"] or row["moh_ms"])
        assert row["vs_eager"] == row["eager_ms"] / ours > 0
        assert row["vs_best_peer"] == row[f"{row['best_peer']}_ms"] / ours
        assert row["compile_ms"] is None
        assert (row["openvino_ms"] is not None) == HAS_OPENVINO


@sampled(3)
@pytest.mark.parametrize(
    "name", ["llama-form", "vit-form", "dit-form", "llama-decode", "llama-heads-first"]
)
def test_models_of_ours_run_and_choose_heads(bench: ModuleType, name: str):
    import torch

    config = load_config(bench.SUBJECTS[name].config, ["dims.past=8"] * (name == "llama-decode"))
    subjects = sys.modules["model_subjects"]
    module = subjects.build_module(
        config.model.factory, config.model.kwargs, code_dirs=config.model.code_dirs
    )
    inputs = flattened(given_values(config, None, ()))
    gates: list[torch.Tensor] = []
    for part in module.modules():
        if hasattr(part, "_gates"):
            part._gates = keeping(part._gates, gates)
        elif type(part).__name__ == "TwoStageRouter":
            part.register_forward_hook(lambda _, __, output: gates.append(output))
    with torch.no_grad():
        module(*(item.value for item in inputs))
    assert gates
    for gate in gates:
        chosen = (gate != 0).sum(dim=-1)
        assert chosen.min() == chosen.max() < gate.shape[-1]


def keeping(call: Callable[..., object], results: list[object]) -> Callable[..., object]:
    def kept(*arguments: object) -> object:
        results.append(call(*arguments))
        return results[-1]

    return kept


def test_decoding_with_a_cache_continues_the_prompt(bench: ModuleType):
    import torch

    torch.manual_seed(0)
    sizes = {"num_heads": 4, "num_kv_heads": 2, "num_shared_heads": 2, "top_k": 1}
    decoder = import_module("cached_decoder").cached_decoder(
        dim=32, depth=2, vocab_size=16, **sizes
    )
    tokens, mask = torch.arange(10).view(2, 5), torch.ones(2, 5, dtype=torch.bool)
    with torch.no_grad():
        whole, *cache = decoder(tokens, mask)
        _, *past = decoder(tokens[:, :4], mask[:, :4])
        last, *grown = decoder(tokens[:, 4:], mask, *past)
    torch.testing.assert_close(last, whole[:, 4:])
    torch.testing.assert_close(grown, cache)


def test_row_compares_with_the_best_peer(bench: ModuleType):
    ms = {"moh": 2.0, "eager": 9.0, "plain_onnx": 5.0, "openvino": 3.0}
    row = bench.row_of("m", 2, 1, ms)
    assert (row.vs_eager, row.vs_plain_onnx, row.best_peer, row.vs_best_peer) == (
        *(4.5, 2.5, "openvino", 1.5),
    )
    assert (row.compile_ms, list(row.to_json())) == (None, COLUMNS)


def test_row_without_peers_has_no_ratio(bench: ModuleType):
    row = bench.row_of("m", 2, 1, {"moh": 2.0})
    assert (row.vs_eager, row.best_peer, row.vs_best_peer) == (None, None, None)


def test_threads_are_compared_by_the_least_wall_time(bench: ModuleType):
    assert bench.figure([5.0, 1.0, 2.0], 1) == 2.0
    assert bench.figure([5.0, 1.0, 2.0], 2) == 1.0


def candidate(bench: ModuleType, value: float) -> object:
    candidates = sys.modules["model_candidates"]
    return candidates.Candidate(
        "peer", lambda: value, lambda result: [np.full((2, 3), result, np.float32)]
    )


def reference(bench: ModuleType, undecided: int) -> object:
    outputs = {"logits": np.ones((2, 3), np.float32)}
    return sys.modules["model_timing"].Reference(outputs, undecided)


def test_wrong_output_is_no_measurement(bench: ModuleType):
    with pytest.raises(bench.WrongOutput, match=r"'logits' of vectors peer differs by 0\.001"):
        bench.measure(
            [candidate(bench, 1.001)], reference(bench, undecided=0), threads=1, repeats=1
        )


def test_another_choice_of_heads_is_excused_where_rounding_decides(bench: ModuleType):
    check = sys.modules["model_timing"].check
    assert not check(candidate(bench, 1), 1.00001, reference(bench, 3)).excused
    assert check(candidate(bench, 1), 1.001, reference(bench, 3)).excused
    with pytest.raises(bench.WrongOutput, match="unclear for 3 tokens"):
        check(candidate(bench, 1), 1.2, reference(bench, 3))
    with pytest.raises(bench.WrongOutput):
        check(candidate(bench, 1), np.nan, reference(bench, 3))


def test_candidates_take_turns_and_change_their_order(bench: ModuleType, monkeypatch):
    interleaving = sys.modules["interleaving"]
    order: list[str] = []
    monkeypatch.setattr(interleaving, "_seconds", lambda call: 0.01)
    calls = [partial(order.append, name) for name in "abc"]
    runs_ms = interleaving.interleaved_ms(calls, threads=1, rounds=7)
    # One run is not timed, and two fill a slice of 20 ms.
    turns = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert set(turns) == {"aaa", "bbb", "ccc"}
    rounds = ["".join(turns[i : i + 3]) for i in range(0, len(turns), 3)]
    assert {"".join(sorted(item)) for item in rounds} == {"aaabbbccc"}
    assert len(set(rounds)) > 3
    assert [len(ms) for ms in runs_ms] == [7] * 3


def test_long_runs_are_all_timed(bench: ModuleType, monkeypatch: pytest.MonkeyPatch):
    interleaving = sys.modules["interleaving"]
    monkeypatch.setattr(interleaving, "_seconds", lambda call: 0.2)
    ran: list[int] = []
    interleaving.interleaved_ms([lambda: ran.append(1)], threads=1, rounds=2)
    assert len(ran) == 2


@nightly
def test_rows_of_inputs_repeat_for_larger_batches(prepared: object):
    two, five = prepared.inputs(2), prepared.inputs(5)
    for name, array in two.items():
        np.testing.assert_array_equal(five[name], array[[0, 1, 0, 1, 0]])
        np.testing.assert_array_equal(array, prepared.example.inputs[name])


@nightly
def test_missing_runtime_or_compiler_is_no_failure(
    bench: ModuleType, prepared: object, monkeypatch: pytest.MonkeyPatch
):
    def no_compiler(module: object) -> object:
        def call(*arguments: object) -> object:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found")

        return call

    monkeypatch.setattr("torch.compile", no_compiler)
    monkeypatch.setitem(sys.modules, "openvino", None)
    kernel = choose_kernels("off")
    field = bench.all_candidates(prepared, prepared.inputs(1), kernel, bench.PEERS, 1)
    assert [item.name for item in field.candidates] == ["moh", "eager", "plain_onnx"]
    assert "No working C++ compiler" in field.absent["compile"]
    assert "pip install 'moh-deploy[bench]'" in field.absent["openvino"]


@nightly
@pytest.mark.parametrize("kernels", ["off", "auto"])
def test_rows_are_skipped_by_kernels_only(bench: ModuleType, prepared: object, kernels: str):
    use = choose_kernels(kernels)
    inputs = prepared.inputs(1)
    work = bench.skipped_work(prepared.package, inputs, use, repeats=1)
    assert [item.path for item in work] == [item.path for item in prepared.package.manifest.layers]
    for item in work:
        layer = next(x for x in prepared.package.manifest.layers if x.path == item.path)
        assert item.attention.dense == layer.seq_len * layer.num_heads
        assert (item.time is None) == (layer.node is None)
        skips = use.library is not None and layer.node is not None and layer.choice != "dense"
        assert item.choice == layer.choice
        assert (item.attention.computed < item.attention.dense) == skips
    answer = bench.SkippedWork("m", 1, work).to_json()
    assert json.loads(json.dumps(answer))["layers"][-1]["attention"] == {
        "computed": work[-1].attention.computed,
        "dense": work[-1].attention.dense,
    }


@nightly
def test_dense_layer_and_open_gates_are_measured_beside_ours(bench: ModuleType, prepared: object):
    work = bench.skipped_work(
        prepared.package, prepared.inputs(2), choose_kernels("auto"), repeats=1
    )
    replaced = [item.time for item in work if item.time is not None]
    assert replaced
    for time in replaced:
        assert min(time.moh, time.every_head, time.dense) > 0
        assert time.gain == time.dense / time.moh


@nightly
def test_profile_has_the_operators_of_both_sides(
    bench: ModuleType, prepared: object, tmp_path: Path
):
    lines = bench.profile_both(
        prepared, prepared.inputs(2), choose_kernels("off"), repeats=2, scratch=tmp_path
    )
    (softmax,) = (line for line in lines if line.op == "Softmax")
    assert softmax.plain.nodes > 0
    assert softmax.plain.ms > 0
    answer = bench.Profile("m", 2, lines).to_json()
    assert answer["ops"][0]["plain"].keys() == {"nodes", "ms"}


def test_profile_leaves_the_first_run_out_and_adds_medians(bench: ModuleType, tmp_path: Path):
    def event(node: str, op: str, microseconds: int, kind: str = "_kernel_time") -> object:
        name = {"name": node + kind, "cat": "Node", "dur": microseconds}
        return {**name, "args": {"op_name": op}}

    file = tmp_path / "profile.json"
    events = [event("a", "MatMul", us) for us in (9000, 1000, 3000, 2000)]
    events += [event("b", "MatMul", us) for us in (9000, 500, 500, 500)]
    events += [event("a", "MatMul", 7, "_fence_before"), {"cat": "Session", "name": "run"}]
    file.write_text(json.dumps(events))
    share = sys.modules["model_profile"].Share
    assert sys.modules["model_profile"].read_profile(file) == {"MatMul": share(2, 2.5)}


@nightly
def test_random_weights_have_no_zeros_left(bench: ModuleType, folder: Path):
    import torch

    weights = torch.load(folder / "vit-form" / "random_weights.pt", weights_only=True)
    module = import_module("pyramid_model").pyramid(
        **load_config(bench.SUBJECTS["vit-form"].config).model.kwargs
    )
    assert all(bool(weights[name].any()) for name, _ in module.named_parameters())


def test_model_whose_code_is_missing_is_refused(bench: ModuleType, tmp_path: Path):
    subject = bench.SUBJECTS["vit-small-75"]
    with pytest.raises(bench.NoOriginal, match=r"clone https://\S+ and give its folder with --ori"):
        bench.prepare(subject, bench.Request(), tmp_path)
    with pytest.raises(bench.NoOriginal, match="has no folder MoH-ViT"):
        bench.prepare(subject, bench.Request(original=tmp_path), tmp_path)


def test_options_of_one_model_need_one_model(bench: ModuleType, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--models", "vit-form", "dit-form", "--set", "dims.seq=8"])
    assert "are of one model" in capsys.readouterr().err
