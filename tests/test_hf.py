"""Packages in transformers: its `generate` and pipelines answer as with the originals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.frontend.export_package import export_package
from tests.cli.run_cli import run_python
from tests.handmade_package import write_package
from tests.nightly import nightly
from tests.text.export_small import export_directory
from tests.text.gated_directories import IMAGE, TEXT, GatedDirectory, write_gated_directory
from tests.text.tokenizer_files import write_tokenizer

LLAMA = {**TEXT, "num_key_value_heads": 2, "max_position_embeddings": 200}
PROMPTS = torch.tensor([[0, 0, 0, 9, 4, 7], [5, 31, 8, 60, 3, 11]])
MASK = (PROMPTS != 0).long()


@pytest.fixture(scope="module", params=["concatenated", "in-place"])
def llama(request, tmp_path_factory):
    """An original of transformers, its package, and that package in transformers."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    from moh_deploy.hf import MoHModelForCausalLM

    root = tmp_path_factory.mktemp("llama")
    case = GatedDirectory("AutoModelForCausalLM", "LlamaForCausalLM", LLAMA, "", 2)
    original = write_gated_directory(root / "model", case)
    write_tokenizer(root / "model")
    export_directory(root / "model", root / "package", cache=request.param)
    return original, root / "package", MoHModelForCausalLM.from_pretrained(root / "package")


@nightly
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.3},
        {"num_return_sequences": 2, "do_sample": True, "temperature": 1.5, "top_k": 9},
        {"use_cache": False},
        {"prefill_chunk_size": 2},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_tokens_are_those_of_the_original(llama, settings: dict[str, object]):
    found = []
    for model in (llama[0], llama[2]):
        torch.manual_seed(7)
        # So many that buffers are made longer twice.
        length = {"max_new_tokens": 20 if "num_beams" in settings else 150}
        given = {"input_ids": PROMPTS, "attention_mask": MASK, "pad_token_id": 0}
        found.append(model.generate(**given, **length, **settings))
    assert found[0].shape[1] > 20
    assert torch.equal(*found)


@nightly
def test_logits_of_prompt_and_step_are_those_of_the_original(llama):
    original, _, model = llama
    step = torch.tensor([[3], [4]])
    mask = torch.cat([MASK, torch.ones(2, 1, dtype=torch.long)], 1)
    with torch.no_grad():
        expected = original(torch.cat([PROMPTS, step], 1), attention_mask=mask).logits
    prompt = model(PROMPTS, attention_mask=MASK)
    behind = model(step, attention_mask=mask, cache=prompt.cache)
    found = torch.cat([prompt.logits, behind.logits], 1)
    assert prompt.cache.get_seq_length() == 7
    torch.testing.assert_close(found[MASK_OF_7], expected[MASK_OF_7], atol=1e-4, rtol=1e-4)


MASK_OF_7 = torch.cat([MASK, torch.ones(2, 1, dtype=torch.long)], 1).bool()


@nightly
def test_a_text_goes_on_from_the_cache_that_was_returned(llama):
    found = []
    for model in (llama[0], llama[2]):
        given = {"max_new_tokens": 5, "return_dict_in_generate": True}
        first = model.generate(PROMPTS[1:], **given)
        more = torch.cat([first.sequences, torch.tensor([[33, 12]])], 1)
        found.append(model.generate(more, cache=first.cache, **given).sequences)
    assert found[0].shape[1] == 6 + 5 + 2 + 5
    assert torch.equal(*found)


@nightly
def test_pipeline_writes_what_it_writes_with_the_original(llama):
    from transformers import AutoTokenizer, pipeline

    original, package, model = llama
    tokenizer = AutoTokenizer.from_pretrained(package)  # its files came along
    tokenizer.pad_token_id, tokenizer.padding_side = 0, "left"
    texts = []
    for each in (original, model):
        writer = pipeline("text-generation", model=each, tokenizer=tokenizer, device="cpu")
        texts.append(
            writer(
                ["a b c", "b"], batch_size=2, min_new_tokens=9, max_new_tokens=9, do_sample=False
            )
        )
    assert texts[0] == texts[1]
    assert len(texts[0][0][0]["generated_text"]) > len("a b c")


@nightly
def test_what_a_package_cannot_do_is_one_sentence(llama):
    model = llama[2]
    with pytest.raises(ConfigError, match="201 tokens are given; the package takes 200 together"):
        model(torch.full((1, 201), 5))
    with pytest.raises(ConfigError, match="labels is given, which a package does not take"):
        model(PROMPTS, labels=PROMPTS)
    with pytest.raises(ConfigError, match="97"):
        model(torch.tensor([[97]]))
    assert model.config.vocab_size == 97
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id in (2, [2])


@nightly
def test_images_have_the_classes_that_the_original_sees(tmp_path: Path, capfd):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from moh_deploy.hf import MoHModelForCausalLM, MoHModelForImageClassification

    names = {0: "cat", 1: "dog", 2: "hen"}
    config = {**IMAGE, "id2label": names, "label2id": {v: k for k, v in names.items()}}
    case = GatedDirectory(
        "AutoModelForImageClassification", "ViTForImageClassification", config, "", 2
    )
    original = write_gated_directory(tmp_path / "model", case)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(
        tmp_path / "model"
    )
    export_package(ExportOptions(tmp_path / "model", tmp_path / "package", trust_code=True))
    model = MoHModelForImageClassification.from_pretrained(tmp_path / "package")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "package")
    from PIL import Image

    draws = np.random.default_rng(3)
    images = [Image.fromarray(draws.integers(0, 255, (40, 50, 3), np.uint8)) for _ in range(3)]
    capfd.readouterr()
    answers = []
    for each in (original, model):
        see = transformers.pipeline(
            "image-classification", model=each, image_processor=processor, device="cpu"
        )
        answers.append(see(images, batch_size=2))
    assert "is not supported for" not in capfd.readouterr().err.split("MoHModelFor")[-1]
    for expected, found in zip(*answers, strict=True):
        assert [item["label"] for item in found] == [item["label"] for item in expected]
        scores = [[item["score"] for item in answer] for answer in (expected, found)]
        np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4)
    assert {item["label"] for item in answers[0][0]} == set(names.values())
    with pytest.raises(PackageError, match="generates no text"):
        MoHModelForCausalLM.from_pretrained(tmp_path / "package")


@nightly
def test_a_package_of_several_inputs_is_no_image_classifier(tmp_path: Path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from moh_deploy.hf import MoHModelForImageClassification

    package = write_package(tmp_path / "package")
    with pytest.raises(ConfigError, match="expected"):
        MoHModelForImageClassification.from_pretrained(package.root)


def test_installation_without_transformers_names_the_extra():
    ended = run_python("-c", "import sys; sys.modules['transformers'] = None; import moh_deploy.hf")
    assert "BackendError: not installed: transformers." in ended.err
    assert "pip install 'moh-deploy[transformers]'" in ended.err
