from pathlib import Path

import numpy as np
import pytest
import torch

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.frontend.inputs.example_inputs import decoder_inputs, example_inputs
from moh_deploy.frontend.load.decoder import make_decoder
from moh_deploy.frontend.load.load import load
from tests.frontend.load.onnx_graph.onnx_models import written
from tests.text.model_directories import plain_torch_model

MASKED = """g (float[n, t, 3] x, int64[n, t] mask) => (float[n, t, 3] y) {
    keep = Cast <to = 1> (mask)
    axis = Constant <value = int64[1] {2}> ()
    column = Unsqueeze (keep, axis)
    y = Div (x, column)
}"""


def test_file_is_told_which_input_says_what_tokens_are_valid(tmp_path: Path):
    path = written(MASKED, tmp_path / "model.onnx")

    def example(mask: str) -> dict[str, torch.Tensor]:
        specs = ("x:[n=2,t=4,3]", "mask:[n=2,t=4]:int64")
        config = ExportConfig(valid_tokens=mask)
        _, inputs = example_inputs(load(path, config.model), config, specs=specs)
        return {item.name: item.value for item in inputs if item.says_valid}

    assert example("mask")["mask"].unique().tolist() == [0, 1]
    assert not example("all")
    with pytest.raises(ConfigError, match="valid_tokens is 'msk', but the model has x, mask"):
        example("msk")


# Example inputs of text generation come from the model, and tokens from a file if there is one.


def test_more_tokens_than_the_model_takes_are_refused(tmp_path: Path):
    module = plain_torch_model()
    ids = np.ones((2, 2 * module.cos.shape[0] + 2), np.int64)
    np.savez(tmp_path / "tokens.npz", input_ids=ids)
    with pytest.raises(
        ExportError, match="the model itself fails on 129 tokens without a cache"
    ) as caught:
        decoder_inputs(module, make_decoder(module), tmp_path / "tokens.npz")
    assert "fewer tokens" in caught.value.hint


def test_real_tokens_of_a_file_are_recorded(tmp_path: Path):
    module = plain_torch_model()
    decoder = make_decoder(module)
    ids = np.array([[5, 6, 7, 8], [9, 8, 7, 6]])
    np.savez(tmp_path / "tokens.npz", input_ids=ids)
    bound = decoder_inputs(module, decoder, tmp_path / "tokens.npz")
    assert bound.inputs[0].value.tolist() == ids[:, 2:].tolist()
    np.savez(tmp_path / "tokens.npz", input_ids=ids + 90)
    with pytest.raises(ConfigError, match="from 95 to 99; the model has 97 tokens"):
        decoder_inputs(module, decoder, tmp_path / "tokens.npz")
