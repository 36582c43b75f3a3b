"""A model directory, exported for text generation: its tokens are those of the model itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import moh_deploy
from moh_deploy.errors import BackendError, CheckpointError, ConfigError, PackageError
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage, PackageWriter
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.openvino import extension
from moh_deploy.runtime.text.interface import TextInterface
from tests.exporting import prove_in_this_process
from tests.nightly import nightly
from tests.text.export_small import export_directory, greedy
from tests.text.model_directories import write_plain_torch, write_weights

PROMPTS = [[5], [9, 4, 7, 31, 8, 60, 2], [(7 * i) % 90 + 1 for i in range(40)]]
STEPS = 64


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, torch.nn.Module, OnnxPackage]:
    root = tmp_path_factory.mktemp("text")
    model = write_plain_torch(root / "model", num_hidden_layers=1, eos_token_id=None)
    (root / "model" / "tokenizer_config.json").write_text("{}")
    with pytest.MonkeyPatch.context() as monkeypatch:
        prove_in_this_process(monkeypatch)
        package = export_directory(root / "model", root / "package")
    return root, model, package


def test_inputs_and_outputs_have_the_names_of_the_convention(exported):
    manifest = exported[2].manifest
    assert {item.name: item.shape for item in manifest.inputs} == {
        "input_ids": ("batch", "seq"),
        "attention_mask": ("batch", "total"),
        "past_key_values.0.key": ("batch", 2, "past", 8),
        "past_key_values.0.value": ("batch", 2, "past", 8),
    }
    assert [output.name for output in manifest.outputs] == [
        "logits",
        "present.0.key",
        "present.0.value",
    ]
    assert manifest.text_generation.context_length == 128
    assert "tokenizer_config.json" in manifest.files


def test_recorded_runs_are_prompt_chunk_and_step(exported):
    sizes = [vectors.sizes for vectors in exported[2].vectors]
    assert any(size["past"] == 0 and size["seq"] > 1 for size in sizes)
    assert any(size["past"] > 0 and size["seq"] > 1 for size in sizes)
    assert any(size["past"] > 0 and size["seq"] == 1 for size in sizes)
    masks = [vectors.inputs["attention_mask"] for vectors in exported[2].vectors]
    assert any((mask[:, 0] == 0).any() for mask in masks)


def test_more_tokens_than_the_table_of_positions_are_named(exported):
    package = exported[2]
    caches = TextInterface.of(package.manifest, "p").empty_caches(1, 0)
    ids = np.full((1, 129), 5, np.int64)
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), **caches}
    with pytest.raises(ConfigError, match=r"row 128 of .*, a table of 128 rows"):
        open_runner(package, Variant()).run(given)


def test_ranges_refuse_nothing_that_works(exported):
    manifest = exported[2].manifest
    assert manifest.dim_ranges.get("past", (0, None)) == (0, None)
    assert manifest.dim_ranges.get("seq", (1, None)) == (1, None)
    assert manifest.dim_sums == ()


def test_tokens_of_a_padded_batch_are_those_of_each_prompt_alone(exported):
    _, model, package = exported
    report = moh_deploy.generate(package.root, tokens=PROMPTS, max_tokens=STEPS)
    expected = [greedy(model, prompt, STEPS) for prompt in PROMPTS]
    assert [list(text.tokens) for text in report.texts] == expected
    assert len({tuple(item[:8]) for item in expected}) == len(PROMPTS)  # not all the same anyway
    assert report.open_heads == pytest.approx(0.75)
    assert (report.new_tokens, report.steps) == (3 * STEPS, STEPS - 1)


def test_tokens_equal_those_of_the_original(exported):
    root, _, package = exported
    original = moh_deploy.load_original(root / "model", trust_code=True, task="text-generation")
    report = moh_deploy.generate(package.root, tokens=PROMPTS, max_tokens=9, against=original)
    assert report.failure is None
    assert (report.parity.compared, report.parity.differences) == (27, ())


def test_original_without_the_task_is_run_as_the_package_is(exported):
    root, _, package = exported
    original = moh_deploy.load_original(root / "model", trust_code=True)
    report = moh_deploy.verify(package.root, against=[original])
    assert report.failure is None
    assert report.vector_sets == len(package.vectors)  # that of an empty cache, too


def test_other_weights_are_no_near_tie(exported, tmp_path: Path):
    _, model, package = exported
    weights = {name: item.clone() for name, item in model.state_dict().items()}
    write_plain_torch(tmp_path, num_hidden_layers=1, eos_token_id=None)
    weights["head.weight"] = weights["head.weight"].roll(1, dims=0)
    write_weights(tmp_path, weights)
    other = moh_deploy.load_original(tmp_path, trust_code=True, task="text-generation")
    report = moh_deploy.generate(package.root, tokens=PROMPTS, max_tokens=9, against=other)
    assert report.failure.message.startswith(f"{package.root} does not generate what original")
    assert {difference.position for difference in report.parity.differences} == {0}


def test_ending_token_ends_its_text_alone(exported, tmp_path: Path):
    _, model, package = exported
    expected = [greedy(model, prompt, 12) for prompt in PROMPTS]
    end = expected[1][0]
    cut = [item[: item.index(end) + 1] if end in item else item for item in expected]
    assert len({len(item) for item in cut}) > 1  # one text goes on where another has ended
    about = replace(package.manifest.text_generation, eos_token_ids=(end,))
    manifest = replace(package.manifest, text_generation=about)
    with PackageWriter(tmp_path / "ending") as writer:
        writer.bring_along(package, "model.onnx")
        writer.bring_carried(package)
        writer.finish(manifest, package.vectors)
    report = moh_deploy.generate(tmp_path / "ending", tokens=PROMPTS, max_tokens=12)
    assert [list(text.tokens) for text in report.texts] == cut
    assert [text.ended for text in report.texts] == [end in item for item in expected]
    assert "tokenizer_config.json" in OnnxPackage.open(tmp_path / "ending").manifest.files


def test_draws_are_the_same_for_a_seed(exported):
    root = exported[2].root
    settings = {"tokens": [[5], [6, 7]], "max_tokens": 6, "temperature": 1.5, "top_p": 0.9}
    first, again = (moh_deploy.generate(root, seed=4, **settings).texts for _ in "ab")
    other = moh_deploy.generate(root, seed=5, **settings).texts
    assert first == again != other


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"prompts": ["a"]}, PackageError, r"has no tokenizer\.json"),
        ({}, ConfigError, "no prompt is given"),
        ({"tokens": [[1]], "prompts": ["a"]}, ConfigError, "as text and as tokens"),
        ({"tokens": [[1], []]}, ConfigError, "prompt 2 has no tokens"),
        ({"tokens": [[97]]}, ConfigError, "token 97; the model has tokens 0 to 96"),
        ({"tokens": [[1] * 100]}, ConfigError, "100 tokens, and 64 more.* takes 128 together"),
        ({"tokens": [[1]], "temperature": -1}, ConfigError, "temperature is -1"),
        ({"tokens": [[1]], "top_p": 0}, ConfigError, "top_p is 0"),
        ({"tokens": [[1]], "temperature": 1, "against": "x"}, ConfigError, "likeliest tokens"),
        ({"tokens": [[1]], "top_p": 0.9}, ConfigError, "top_p and seed are of draws"),
        ({"tokens": [[1]], "seed": 5}, ConfigError, "top_p and seed are of draws"),
        ({"prompts": "Once"}, PackageError, r"has no tokenizer\.json"),
    ],
)
def test_wrong_prompt_is_one_sentence(exported, given, error, words):
    with pytest.raises(error, match=words):
        moh_deploy.generate(exported[2].root, **given)


def test_other_inputs_beside_the_task_are_refused(exported, tmp_path: Path):
    with pytest.raises(ConfigError, match="--dynamic and --task text-generation"):
        export_directory(exported[0] / "model", tmp_path / "no", dynamic=("input_ids:0=batch",))
    assert not (tmp_path / "no").exists()


def test_config_that_contradicts_the_code_is_named(tmp_path: Path):
    write_plain_torch(tmp_path / "model", num_hidden_layers=1, head_dim=16)
    with pytest.raises(CheckpointError, match=r"head_dim is 16, but the model .* has 8"):
        export_directory(tmp_path / "model", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_package_that_was_tuned_for_another_runtime_runs_there_or_where_one_says(
    exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = exported[2]
    write_choices(package, package.manifest.layers, tmp_path / "tuned", runtime="openvino")

    def missing() -> None:
        raise BackendError("OpenVINO cannot be loaded.")

    monkeypatch.setattr(extension, "import_openvino", missing)
    given = {"tokens": PROMPTS[:1], "max_tokens": 3}
    with pytest.raises(BackendError, match="tuned for openvino, which is not here"):
        moh_deploy.generate(tmp_path / "tuned", **given)
    with pytest.raises(BackendError, match="tuned for openvino, which is not here"):
        moh_deploy.generate(package.root, against=tmp_path / "tuned", **given)
    monkeypatch.setattr(extension, "import_openvino", lambda: None)
    monkeypatch.setattr(extension, "_release", lambda: "2026.4.1")
    with pytest.raises(BackendError, match="OpenVINO runs no language model"):
        moh_deploy.generate(tmp_path / "tuned", **given)
    report = moh_deploy.generate(tmp_path / "tuned", runtime="onnxruntime", **given)
    assert report.texts == moh_deploy.generate(package.root, **given).texts


@pytest.mark.parametrize("form", ["in place", pytest.param("float16", marks=nightly)])
def test_tokens_equal_those_of_the_same_model_in_another_form(exported, tmp_path: Path, form: str):
    root, _, package = exported
    other = export_directory(root / "model", tmp_path / "in-place", cache="in-place")
    if form == "float16":
        moh_deploy.precision(other.root, to="float16", output=tmp_path / "half")
        other = OnnxPackage.open(tmp_path / "half")
    for item, reference in ((package, other), (other, package)):
        report = moh_deploy.generate(
            item.root, tokens=PROMPTS, max_tokens=5, against=reference.root
        )
        assert report.failure is None
        assert report.parity.compared >= 5
