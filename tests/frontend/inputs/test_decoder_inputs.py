"""Example inputs of text generation come from the model, and tokens from a file if there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError, ExportError
from moh_deploy.frontend.inputs.from_options import decoder_inputs
from moh_deploy.frontend.load.decoder import make_decoder
from tests.text.model_directories import plain_torch_model


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
