"""The layouts of published files, with small models in place of the published ones."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests import small_moh
from tests.nightly import nightly
from tests.text.model_directories import write_old_llama

TOOL = importlib.util.spec_from_file_location(
    "try_published", Path(__file__).parents[2] / "tools" / "try_published.py"
)
assert TOOL is not None
assert TOOL.loader is not None
try_published = importlib.util.module_from_spec(TOOL)
sys.modules[TOOL.name] = try_published  # as dataclasses look there
TOOL.loader.exec_module(try_published)

# Stands for the published code: its module and its functions, around a layer of this repository.
CODE = """
from small_moh import build

def {factory}(**kwargs):
    return Model(build())
"""
VIT = """
from torch import nn

class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.embed, self.layer, self.head = nn.Conv2d(3, 8, 56, 56), layer, nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.layer(self.embed(x).flatten(2).mT).mean(1))
"""
DIT = """
from torch import nn

class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.embed, self.layer, self.head = nn.Conv2d(4, 8, 8, 8), layer, nn.Linear(8, 8 * 64)
        self.time, self.label = nn.Embedding(1000, 8), nn.Embedding(1001, 8)

    def forward(self, x, t, y):
        tokens = self.embed(x).flatten(2).mT + (self.time(t) + self.label(y)).unsqueeze(1)
        patches = self.head(self.layer(tokens)).unflatten(1, (4, 4)).unflatten(-1, (8, 8, 8))
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(-1, 8, 32, 32)
"""
QUICK = ["--min-time", "0.05", "--threads", "1"]


def run(tmp_path: Path, *arguments: str | Path) -> tuple[int, dict[str, object]]:
    """Try files out; return the exit code and what result.json holds."""
    out = tmp_path / "out"
    code = try_published.main([*map(str, arguments), "--output", str(out), *QUICK])
    content = (out / "result.json").read_text()
    assert str(tmp_path) not in content
    assert "</html>" in (out / "page.html").read_text()
    return code, json.loads(content)


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A clone, in which small models have the names of published ones."""
    for folder, module, factory, model in (
        ("MoH-ViT", "transnext", "moh_transnext_small_75", VIT),
        ("MoH-DiT", "models", "MoH_DiT_S_2_75", DIT),
    ):
        directory = tmp_path / "MoH" / folder
        directory.mkdir(parents=True)
        shutil.copy(small_moh.__file__, directory)
        (directory / f"{module}.py").write_text(model + CODE.format(factory=factory))
    return tmp_path / "MoH"


def weights(model: str) -> dict[str, torch.Tensor]:
    space: dict[str, type[nn.Module]] = {}
    exec(model, space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return space["Model"](small_moh.build()).state_dict()


def finished(steps: object) -> Sequence[str]:
    assert isinstance(steps, dict)
    return [name for name, step in steps.items() if "report" in step]


ALL_STEPS = ["export", "verify", "inspect", "bench", "probe"]


@nightly
@pytest.mark.parametrize("is_alone", [False, True])
def test_moh_vit_is_tried_on_labelled_data(tmp_path: Path, original: Path, is_alone: bool):
    folder = tmp_path / "MoH-ViT-S-75"
    folder.mkdir()
    found = weights(VIT)
    torch.save(found if is_alone else {"model": found, "epoch": 3}, folder / "checkpoint.pth")
    images = np.random.default_rng(0).standard_normal((4, 3, 224, 224)).astype(np.float32)
    np.savez(tmp_path / "val.npz", x=images, labels=np.arange(4))
    data = ("--inputs", tmp_path / "val.npz", "--labels", "labels")
    code, result = run(tmp_path, folder, "--original", original, *data)
    # 1: four samples are too few to tell what accuracy loses.
    assert (code, finished(result["steps"])) == (1, ALL_STEPS)
    assert result["open_heads"] == 0.75  # two shared heads and one of two routed ones
    assert '"top-1"' in json.dumps(result["steps"]["verify"])  # type: ignore[index]


@nightly
def test_moh_dit_is_tried_without_data(tmp_path: Path, original: Path):
    folder = tmp_path / "MoH-DiT-S-75"
    folder.mkdir()
    torch.save({"ema": weights(DIT), "model": weights(DIT)}, folder / "model.pt")
    code, result = run(tmp_path, folder, "--original", original)
    assert (code, finished(result["steps"])) == (0, ALL_STEPS)
    assert result["model"] == "moh_dit_s_2_75"


@nightly
def test_moh_llama3_is_tried_as_a_directory_of_hugging_face(tmp_path: Path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    write_old_llama(tmp_path / "MoH-LLaMA3-8B")
    code, result = run(tmp_path, tmp_path / "MoH-LLaMA3-8B")
    assert (code, finished(result["steps"])) == (0, ALL_STEPS)


@nightly
def test_weights_of_another_model_fail_the_first_step_and_are_reported(
    tmp_path: Path, original: Path
):
    torch.save(weights(DIT), tmp_path / "moh_vit_s_75.pth")
    code, result = run(tmp_path, tmp_path / "moh_vit_s_75.pth", "--original", original)
    assert (code, finished(result["steps"])) == (1, [])
    assert result["steps"]["export"]["exit_code"] == 3  # type: ignore[index]


def test_what_is_found_stays_where_a_step_is_interrupted(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    torch.save({}, tmp_path / "moh_vit_s_75.pth")
    monkeypatch.setattr(try_published.moh_deploy, "load_original", interrupted, raising=False)
    code, result = run(tmp_path, tmp_path / "moh_vit_s_75.pth", "--original", original)
    assert code == 130
    assert result["steps"]["export"]["error"] == "KeyboardInterrupt: "  # type: ignore[index]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "expected one file of weights"),
        (("a.pt", "b.pt"), "found a.pt, b.pt"),
        (("config.json",), "has config.json and no weights"),
        (("model.pt",), "neither the directory nor model.pt is named for a model"),
        (("moh_vit_s_75.pth",), "moh_vit_s_75 needs the original code: --original has no MoH-ViT"),
    ],
)
def test_wrong_files_are_refused_before_anything_is_written(
    files: Sequence[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "files"
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    assert try_published.main([str(folder), "--output", str(tmp_path / "out")]) in (2, 3)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("MoH-ViT-B-50/x.pth", "moh_vit_b_50"),
        ("MoH-DiT-XL-90/x.pt", "moh_dit_xl_2_90"),
        ("x/moh_dit_l_2_75.pt", "moh_dit_l_2_75"),
        ("MoH-ViT-S-90/x.pt", None),
    ],
)
def test_configuration_is_found_by_names(name: str, config: str | None):
    assert try_published._config(name) == config
