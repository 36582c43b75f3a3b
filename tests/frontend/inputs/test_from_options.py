from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.inputs.from_options import example_inputs
from moh_deploy.frontend.load.from_options import load
from tests.frontend.load.onnx_graph.onnx_models import written

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
        options = ExportOptions(path, tmp_path / "out", input_specs=specs, valid_tokens=mask)
        config = ExportConfig()
        _, inputs = example_inputs(options, config, load(options, config))
        return {item.name: item.value for item in inputs if item.says_valid}

    assert example("mask")["mask"].unique().tolist() == [0, 1]
    assert not example("all")
    with pytest.raises(ConfigError, match="valid_tokens is 'msk', but the model has x, mask"):
        example("msk")
