from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.inputs.from_options import example_inputs
from moh_deploy.frontend.load.from_options import code_dirs, load
from tests.frontend.checkpoints import Net
from tests.frontend.traced import plain_trace

NO_CONFIG = ExportConfig()
OUT = Path("out")


def test_module_in_memory_is_copied_and_stays_as_it_is():
    module = Net().train()
    loaded = load(ExportOptions(module, OUT), NO_CONFIG)
    assert loaded.form == "in_memory"
    assert loaded.module is not module
    assert not any(part.training for part in loaded.module.modules())
    assert all(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


class KeepsItsLoss(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.loss = super().forward(x).square().mean()
        return super().forward(x)


def test_module_that_cannot_be_copied_says_how_it_can_be():
    module = KeepsItsLoss()
    module(torch.ones(2, 3))
    with pytest.raises(CheckpointError, match="the model cannot be copied: RuntimeError") as caught:
        load(ExportOptions(module, OUT), NO_CONFIG)
    assert "torch.no_grad()" in caught.value.hint
    with torch.no_grad():
        module(torch.ones(2, 3))
    assert load(ExportOptions(module, OUT), NO_CONFIG).module is not None


def test_program_in_memory_is_used_as_it_is():
    program = plain_trace(Net(), torch.zeros(2, 3))
    loaded = load(ExportOptions(program, OUT), NO_CONFIG)
    assert loaded.program is program
    assert loaded.module is None
    _, (x,) = example_inputs(ExportOptions(program, OUT), NO_CONFIG, loaded)
    assert (x.name, tuple(x.value.shape)) == ("x", (2, 3))


def test_file_is_loaded_with_its_digest(tmp_path: Path, code_dir: Path):
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    options = ExportOptions(
        tmp_path / "weights.pt", OUT, factory="user_net:build", code_dirs=(code_dir,)
    )
    loaded = load(options, NO_CONFIG)
    assert loaded.form == "state_dict"
    assert len(loaded.checkpoint_sha256) == 64


def test_options_win_over_the_config_and_its_code_comes_second(tmp_path: Path, code_dir: Path):
    config = ExportConfig.model_validate(
        {"model": {"factory": "user_net:build_number", "code_dirs": [str(tmp_path)]}}
    )
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    options = ExportOptions(
        tmp_path / "weights.pt",
        OUT,
        factory="user_net:build",
        code_dirs=(code_dir,),
        trust_code=True,
    )
    assert load(options, config).form == "state_dict"
    assert code_dirs(options, config) == (code_dir, tmp_path)


def test_anything_else_is_refused():
    with pytest.raises(ConfigError, match=r"is a function; expected a path, a torch\.nn\.Module"):
        load(ExportOptions(lambda x: x, OUT), NO_CONFIG)
