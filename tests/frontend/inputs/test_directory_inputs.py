"""Inputs of model directories, from the parameters of their forward and their files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.inputs.directory_inputs import directory_inputs
from moh_deploy.frontend.inputs.example_inputs import example_inputs
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.frontend.load.model_directory import ModelDirectory

BERT = {"vocab_size": 9, "type_vocab_size": 2, "pad_token_id": 0, "bos_token_id": 1}
CLIP = {
    "text_config": {"vocab_size": 9},
    "vision_config": {"image_size": 8, "num_channels": 1},
}
LLAVA = {**CLIP, "image_token_id": 4}
# Of 4 x 4 patches.
LLAVA_OF_PATCHES = {**LLAVA, "vision_config": {"image_size": 8, "patch_size": 2}}
WHISPER = {"vocab_size": 9, "num_mel_bins": 4, "max_source_positions": 6, "use_cache": True}


def encoder(self, input_ids, attention_mask=None, token_type_ids=None, head_mask=None): ...
def classifier(self, pixel_values=None, labels=None, **kwargs): ...
def two_towers(self, input_ids, pixel_values, attention_mask=None): ...
def speech(self, input_features, attention_mask=None, decoder_input_ids=None, use_cache=None): ...
def audio(self, input_values, attention_mask=None): ...
def of_documents(self, input_ids, attention_mask=None, bbox=None): ...


def model_of(
    root: Path, forward: Callable[..., object], config: dict[str, object], **files: object
) -> LoadedModel:
    """Return a model of a directory with these files; processors' files are named by keyword."""
    for name, content in {"config": config, **files}.items():
        (root / f"{name}.json").write_text(json.dumps(content))
    module = type("Net", (nn.Module,), {"forward": forward})()
    module.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    directory = ModelDirectory(root, config, root / "model.safetensors", ())
    return LoadedModel(module, None, "directory", None, directory=directory)


def described(inputs: dict[str, object]) -> dict[str, object]:
    """Return shapes with the names of dynamic dimensions; constants as they are."""
    return {
        name: [value.dims.get(axis, size) for axis, size in enumerate(value.value.shape)]
        if isinstance(value, ModelInput)
        else value
        for name, value in inputs.items()
    }


TOKENS = {"input_ids": ["batch", "seq"], "attention_mask": ["batch", "seq"]}


@pytest.mark.parametrize(
    ("forward", "config", "expected"),
    [
        (encoder, BERT, {**TOKENS, "token_type_ids": ["batch", "seq"]}),
        (encoder, {**BERT, "type_vocab_size": 1}, TOKENS),
        (classifier, {"image_size": [8, 6]}, {"pixel_values": ["batch", 3, 8, 6]}),
        (classifier, {"image_size": 8, "num_frames": 5}, {"pixel_values": ["batch", 5, 3, 8, 8]}),
        (two_towers, CLIP, {**TOKENS, "pixel_values": ["image_batch", 1, 8, 8]}),
        (
            speech,
            WHISPER,
            {
                "input_features": ["batch", 4, 12],
                "decoder_input_ids": ["batch", "decoder_seq"],
                "use_cache": False,
            },
        ),
        (audio, {"num_mel_bins": 4, "max_length": 12}, {"input_values": ["batch", 12, 4]}),
        (
            audio,
            {"conv_kernel": [10, 3], "conv_stride": [5, 2]},
            {"input_values": ["batch", "samples"]},
        ),
    ],
    ids=["encoder", "one_kind", "image", "video", "clip", "whisper", "ast", "wav2vec"],
)
def test_inputs_are_those_of_the_forward_and_of_the_config(
    tmp_path: Path, forward: Callable[..., object], config: dict, expected: dict[str, object]
) -> None:
    assert described(directory_inputs(model_of(tmp_path, forward, config))) == expected


def test_ids_masks_and_boxes_are_those_that_models_take(tmp_path: Path) -> None:
    config = {**BERT, "max_2d_position_embeddings": 70}
    inputs = directory_inputs(model_of(tmp_path, of_documents, config))
    assert described(inputs) == {**TOKENS, "bbox": ["batch", "seq", 4]}
    assert set(inputs["input_ids"].value.flatten().tolist()) <= set(range(2, 9))
    mask = inputs["attention_mask"].value
    assert mask[:, 0].all()
    assert not mask[0, -1]
    left, top, right, bottom = inputs["bbox"].value.unbind(-1)
    assert ((left >= 0) & (left <= right) & (top <= bottom) & (bottom < 70)).all()


def test_ids_hold_the_places_of_an_image_for_one_sample(tmp_path: Path) -> None:
    inputs = directory_inputs(model_of(tmp_path, two_towers, LLAVA_OF_PATCHES))
    one = {"input_ids": [1, "seq"], "attention_mask": [1, "seq"], "pixel_values": [1, 3, 8, 8]}
    assert described(inputs) == one
    assert (inputs["input_ids"].value == 4).tolist() == [[False, *[True] * 16, *[False] * 6]]
    unknown = directory_inputs(model_of(tmp_path, two_towers, LLAVA))
    assert described(unknown) == {**TOKENS, "pixel_values": ["batch", 1, 8, 8]}
    known = model_of(tmp_path, two_towers, {**LLAVA_OF_PATCHES, "image_seq_length": 5})
    assert (directory_inputs(known)["input_ids"].value == 4).sum() == 5


def test_values_are_of_the_dtype_of_the_weights(tmp_path: Path) -> None:
    inputs = directory_inputs(model_of(tmp_path, classifier, {"image_size": 4}))
    assert inputs["pixel_values"].value.dtype == torch.bfloat16


def test_waveform_gives_each_convolution_whole_frames(tmp_path: Path) -> None:
    config = {"conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2]}
    samples = directory_inputs(model_of(tmp_path, audio, config))["input_values"].value.shape[1]
    for kernel, stride in zip(config["conv_kernel"], config["conv_stride"], strict=True):
        samples = (samples - kernel) // stride + 1
    assert samples == 9


@pytest.mark.parametrize(
    "files",
    [
        {"preprocessor_config": {"size": {"height": 8, "width": 6}}},
        {"preprocessor_config": {"crop_size": [8, 6], "size": {"shortest_edge": 9}}},
        {"processor_config": {"image_processor": {"size": {"height": 8, "width": 6}}}},
    ],
    ids=["size", "crop", "processor"],
)
def test_size_that_the_config_lacks_is_the_processors(tmp_path: Path, files: dict) -> None:
    found = described(directory_inputs(model_of(tmp_path, classifier, {}, **files)))
    assert found == {"pixel_values": ["batch", 3, 8, 6]}


def test_size_that_stands_nowhere_is_named_with_the_input_to_give(tmp_path: Path) -> None:
    model = model_of(tmp_path, classifier, {}, preprocessor_config={"do_resize": False})
    expected = r"image_size is missing in config\.json and preprocessor_config\.json"
    with pytest.raises(ConfigError, match=expected) as error:
        directory_inputs(model)
    assert "--input 'pixel_values:[batch=2,...]:float32'" in error.value.hint


def test_input_of_another_kind_is_named(tmp_path: Path) -> None:
    def graph(self, input_ids: Tensor, edges: Tensor, *, depth: int = 3) -> None: ...

    with pytest.raises(ConfigError, match="the forward of Net needs 'edges'") as error:
        directory_inputs(model_of(tmp_path, graph, BERT))
    assert "--input 'edges:[batch=2,...]" in error.value.hint


def test_constant_takes_the_place_of_an_input(tmp_path: Path) -> None:
    model = model_of(tmp_path, encoder, BERT)
    bound, inputs = example_inputs(model, ExportConfig(), specs=["token_type_ids=None"])
    assert [item.name for item in inputs] == ["input_ids", "attention_mask"]
    assert [argument.value for argument in bound.call.args][2:] == [None]


def test_inputs_of_the_user_are_all(tmp_path: Path) -> None:
    model = model_of(tmp_path, encoder, BERT)
    _, inputs = example_inputs(model, ExportConfig(), specs=["input_ids:[batch=2,4]:int64=0..8"])
    assert [(item.name, item.dims) for item in inputs] == [("input_ids", {0: "batch"})]
