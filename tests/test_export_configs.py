import ast
from pathlib import Path

import pytest

from moh_deploy.config.export_config import SHIPPED, ExportConfig, load_config
from moh_deploy.errors import ConfigError

FOLDER = SHIPPED
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))

VIT = {"s_75": "small_75", "s_80": "small_80", "b_50": "base_50", "b_75": "base_75"}
DIT = [f"{size}_2_{percent}" for size in ("XL", "L", "B", "S") for percent in ("90", "75")]


def shapes(config: ExportConfig) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    return {item.name: (item.dtype, item.shape) for item in config.inputs}


def test_every_official_model_has_a_configuration() -> None:
    vit = {f"moh_vit_{name}" for name in VIT}
    dit = {f"moh_dit_{name.lower()}" for name in DIT}
    assert set(NAMES) == vit | dit | {"moh_llama3_8b", "moh_llama3_8b_decode"}


@pytest.mark.parametrize("name", NAMES)
def test_shipped_configuration_is_valid_and_describes_its_inputs(name: str) -> None:
    config = load_config(FOLDER / f"{name}.yaml")
    assert config.model.factory is not None
    assert config.inputs
    assert config.dims["batch"] >= 2
    assert all(directory.is_dir() for directory in config.model.code_dirs)


@pytest.mark.parametrize(("name", "factory"), VIT.items())
def test_moh_vit_classifies_images(name: str, factory: str) -> None:
    config = load_config(FOLDER / f"moh_vit_{name}.yaml")
    assert config.model.factory == f"transnext:moh_transnext_{factory}"
    assert config.model.state_key == "model"
    assert shapes(config) == {"x": ("float32", ("batch", 3, 224, 224))}


@pytest.mark.parametrize("name", DIT)
def test_moh_dit_takes_latents_timesteps_and_classes(name: str) -> None:
    config = load_config(FOLDER / f"moh_dit_{name.lower()}.yaml")
    assert config.model.factory == f"models:MoH_DiT_{name}"
    assert config.model.state_key == "ema"
    assert shapes(config) == {
        "x": ("float32", ("batch", 4, 32, 32)),
        "t": ("int64", ("batch",)),
        "y": ("int64", ("batch",)),
    }
    assert [item.range for item in config.inputs] == [None, (0, 999), (0, 999)]


def test_moh_llama3_prompt_gives_the_cache_of_every_layer() -> None:
    config = load_config(FOLDER / "moh_llama3_8b.yaml")
    assert [item.shape for item in config.inputs] == [("batch", "seq"), ("batch", "seq")]
    assert len(config.outputs) == 1 + 2 * 32


def test_moh_llama3_decode_takes_what_the_prompt_gives() -> None:
    prompt = load_config(FOLDER / "moh_llama3_8b.yaml")
    decode = load_config(FOLDER / "moh_llama3_8b_decode.yaml")
    assert decode.model == prompt.model
    assert decode.outputs == prompt.outputs
    past = [item.name.replace("past", "present") for item in decode.inputs[2:]]
    assert past == list(prompt.outputs[1:])
    assert {item.shape for item in decode.inputs[2:]} == {("batch", 8, "past", 128)}
    assert decode.inputs[1].shape == ("batch", "past+1")


def test_llama_adapter_defines_the_factory_that_its_configurations_name() -> None:
    module, _, function = str(load_config(FOLDER / "moh_llama3_8b.yaml").model.factory).partition(
        ":"
    )
    tree = ast.parse((FOLDER / f"{module}.py").read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_shipped_configuration_is_found_by_its_name_and_a_file_of_that_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = load_config(FOLDER / "moh_llama3_8b.yaml")
    assert load_config(Path("moh_llama3_8b")) == load_config(Path("moh_llama3_8b.yaml")) == shipped
    assert load_config(Path("export_configs/moh_llama3_8b.yaml")) == shipped
    Path("moh_llama3_8b.yaml").write_text("outputs: [mine]")
    assert load_config(Path("moh_llama3_8b.yaml")).outputs == ("mine",)
    with pytest.raises(ConfigError, match="elsewhere/moh_llama3_8b"):
        load_config(Path("elsewhere/moh_llama3_8b"))
