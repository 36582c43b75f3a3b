import re
import subprocess
import sys
from pathlib import Path

import pytest

from moh_deploy.config.export_config import ExportConfig, load_config, resolved_config
from moh_deploy.config.options import ExportOptions
from moh_deploy.errors import ConfigError

EXAMPLE = """
model:
  factory: models:build
  kwargs: {depth: 3, heads: [2, 4], name: tiny}
  code_dirs: [../code, /absolute]
  state_key: ema.model
inputs:
  - {name: x, shape: [batch, 3, 8, 8]}
  - {name: y, shape: [batch], dtype: int64, range: [0, 9]}
  - {name: past, shape: [batch, past+1], dtype: bfloat16}
dims: {batch: 2, past: 4}
outputs: [logits]
require_layers: 12
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_every_section_is_read(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, EXAMPLE))
    assert config.model.factory == "models:build"
    assert config.model.kwargs == {"depth": 3, "heads": [2, 4], "name": "tiny"}
    assert config.model.state_key == "ema.model"
    assert [i.name for i in config.inputs] == ["x", "y", "past"]
    assert config.inputs[0].dtype == "float32"
    assert config.inputs[1].range == (0, 9)
    assert config.inputs[2].shape == ("batch", "past+1")
    assert config.dims == {"batch": 2, "past": 4}
    assert config.outputs == ("logits",)
    assert config.require_layers == 12


def test_relative_code_dirs_are_relative_to_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, EXAMPLE))
    assert config.model.code_dirs == (tmp_path / "../code", Path("/absolute"))


def test_no_file_gives_an_empty_configuration() -> None:
    assert load_config(None) == ExportConfig()


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    overrides = [
        "model.kwargs.heads.1=8",
        "model.kwargs.new.key=[1, 2]",
        "model.state_key=null",
        "inputs[0].shape[2]=16",
        "dims.batch=5",
    ]
    config = load_config(write(tmp_path, EXAMPLE), overrides)
    assert config.model.kwargs["heads"] == [2, 8]
    assert config.model.kwargs["new"] == {"key": [1, 2]}
    assert config.model.state_key is None
    assert config.inputs[0].shape == ("batch", 3, 16, 8)
    assert config.dims["batch"] == 5


def test_overrides_work_without_a_file() -> None:
    config = load_config(None, ["model.factory=a:b", "inputs=[{name: x, shape: [3]}]"])
    assert config.model.factory == "a:b"
    assert config.inputs[0].shape == (3,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {factry: a}", "model.factry is not a known key. Did you mean 'factory'?"),
        ("dms: {}", "dms is not a known key. Did you mean 'dims'?"),
        (
            "inputs: [{name: x, shape: [1], dtyp: bool}]",
            "inputs.0.dtyp is not a known key. Did you mean 'dtype'?",
        ),
        ("model: {factory: 3}", "model.factory is 3: input should be a valid string"),
        ("model: {kwargs: [1]}", "model.kwargs is [1]: input should be a valid dictionary"),
        ("inputs: [{shape: [1]}]", "inputs.0.name is missing"),
        ("inputs: [{name: x, shape: [1], dtype: int65}]", "inputs.0.dtype is 'int65'"),
        ("inputs: [{name: x, shape: [1.5]}]", "inputs.0.shape.0 is 1.5: expected a size or"),
        ("inputs: [{name: x, shape: [0]}]", "inputs.0.shape.0 is 0: a size must be at least 1"),
        ("inputs: [{name: x, shape: [a*b]}]", "inputs.0.shape.0: 'a*b' is not a dimension"),
        (
            "{inputs: [{name: x, shape: [bach]}], dims: {batch: 2}}",
            "inputs.0.shape.0 is 'bach', but dims gives no size for 'bach'. Add dims: {bach: 2}. "
            "Did you mean 'batch'?",
        ),
        ("{dims: {batch: 2}}", "dims.batch is used by no input"),
        ("{inputs: [{name: x, shape: [b]}], dims: {b: two}}", "dims.b is 'two'"),
        (
            "{inputs: [{name: x, shape: [b]}], dims: {b: 1}}",
            "inputs.0.shape.0 is dynamic ('b') but its example size is 1",
        ),
        ("inputs: [{name: x, shape: [1], range: [1]}]", "inputs.0.range has too few values"),
        ("inputs: [{name: x, shape: [1], range: [2, 1]}]", "inputs.0.range is [2.0, 1.0]"),
        (
            "inputs: [{name: x, shape: [1], range: [0, 1], dtype: bool}]",
            "inputs.0.range has no meaning for dtype bool",
        ),
        (
            "inputs: [{name: x, shape: [1]}, {name: x, shape: [1]}]",
            "inputs.1 repeats the name 'x'",
        ),
        ("outputs: [a, a]", "outputs.1 repeats the name 'a'"),
        ("require_layers: most", "require_layers is 'most': expected a number from 0 on, or 'all'"),
        ("require_layers: -1", "require_layers is -1: expected a number from 0 on, or 'all'"),
        ("", "is empty; expected a mapping"),
        ("[1]", "holds [1]; expected a mapping"),
        ("{model: {}, model: {}}", "key 'model' stands twice"),
        ("{", "is not valid YAML"),
    ],
)
def test_wrong_files_are_refused_naming_file_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(path)
    assert str(path) in caught.value.message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "{model: {factory: 1, state_key: 2}}")
    with pytest.raises(ConfigError, match=r"(?s)model\.factory is 1.*model\.state_key is 2"):
        load_config(path)


def test_problem_of_an_override_is_blamed_on_the_override(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--set: model\.factory is 3"):
        load_config(write(tmp_path, EXAMPLE), ["model.factory=3"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.factory", "expected KEY.PATH=VALUE"),
        ("=3", "expected KEY.PATH=VALUE"),
        ("model..factory=3", "expected KEY.PATH=VALUE"),
        ("dims.batch=[", "the value of --set 'dims.batch=[': is not valid YAML"),
        ("model.factory.x=1", "model.factory is 'models:build', which has no 'x' to set"),
        ("inputs.7.name=x", "inputs has no entry '7'; it has 3"),
        ("inputs.first.name=x", "inputs has no entry 'first'"),
    ],
)
def test_overrides_that_do_not_apply_are_refused(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(tmp_path, EXAMPLE), [override])


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent.yaml: no such file"):
        load_config(tmp_path / "absent.yaml")


def test_reading_a_configuration_does_not_import_torch() -> None:
    code = "import sys, moh_deploy.config.export_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


NESTED = """
inputs:
  ids: {shape: [batch, seq], dtype: int64, range: [0, 9]}
  past:
    - [{shape: [batch, 4, past, 8]}, {shape: [batch, 4, past, 8]}]
  batch: {mask: {shape: [batch, seq]}, scaled: true}
  shape: {shape: {shape: [3]}}
  use_cache: false
  mask: null
  mode: fast
  scale: 2.5
dims: {batch: 2, seq: 5, past: 3}
"""


def test_inputs_are_written_as_they_are_nested(tmp_path: Path):
    config = load_config(write(tmp_path, NESTED))
    assert [info.name for info in config.inputs] == [
        "ids",
        "past.0.0",
        "past.0.1",
        "batch.mask",
        "shape.shape",
    ]
    assert (config.inputs[0].dtype, config.inputs[0].range) == ("int64", (0, 9))
    assert config.inputs[2].shape == ("batch", 4, "past", 8)
    assert config.constants == {
        "batch.scaled": True,
        "use_cache": False,
        "mask": None,
        "mode": "fast",
        "scale": 2.5,
    }
    assert config.constants["use_cache"] is False


def test_constants_beside_a_list_of_inputs_have_a_key_of_their_own(tmp_path: Path):
    text = "{inputs: [{name: x, shape: [1]}], constants: {use_cache: false, past.0: null}}"
    assert load_config(write(tmp_path, text)).constants == {"use_cache": False, "past.0": None}


def test_override_goes_into_what_is_nested(tmp_path: Path):
    config = load_config(write(tmp_path, NESTED), ["inputs.past.0.1.shape.3=16", "inputs.mode=2"])
    assert config.inputs[2].shape[3] == 16
    assert config.constants["mode"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inputs: {past: [{shape: [0]}]}", "inputs.past.0.shape.0 is 0: a size must be at least"),
        ("inputs: {past: [{shape: [b]}]}", "inputs.past.0.shape.0 is 'b', but dims gives no size"),
        ("inputs: {a: {x: {shape: [1.5]}}}", "inputs.a.x.shape.0 is 1.5: expected a size or"),
        ("inputs: {x: {shape: [1], dtpye: bool}}", "inputs.x.dtpye is not a known key. Did you"),
        ("inputs: {x: {dtype: int64}}", "inputs.x.shape is missing"),
        ("inputs: {x: {shape: [1], range: [2, 1]}}", "inputs.x.range is [2.0, 1.0]"),
        ("inputs: {x: {shape: [1]}, past: []}", "inputs.past is []: expected a tensor"),
        ("inputs: {x: {shape: [1]}, when: 2001-01-01}", "inputs.when is datetime.date"),
        ("inputs: {x: {shape: [1]}, past: [{key: []}]}", "inputs.past.0.key is []: expected a"),
        ("{inputs: {x: {shape: [1]}}, constants: [1]}", "constants is [1]"),
        ("{inputs: {x: {shape: [1]}, a: 1}, constants: {b: []}}", ": constants.b is []: expected"),
        ("{inputs: {a: 1}, constants: {a: 2}}", "config.yaml: a is in inputs and in constants"),
        ("{inputs: {a: {shape: [1]}}, constants: {a: 2}}", "'a' is in inputs and in constants"),
    ],
)
def test_problem_is_told_at_its_place_in_the_file(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(tmp_path, text))


def test_options_win_over_the_configuration_and_its_code_comes_second(tmp_path: Path):
    file, mine = write(tmp_path, EXAMPLE), Path("mine")
    plain = resolved_config(ExportOptions("model.pt", OUT, config=file, trust_code=True))
    assert plain == load_config(file)
    options = ExportOptions(
        "model.pt",
        OUT,
        config=file,
        trust_code=True,
        factory="other:build",
        code_dirs=(mine,),
        state_key="model",
        output_names=("y",),
        compute_type="bfloat16",
        require_layers=0,
        valid_tokens="mask",
    )
    config = resolved_config(options)
    assert config.model.factory == "other:build"
    assert config.model.code_dirs == (mine, *plain.model.code_dirs)
    assert (config.model.state_key, config.model.kwargs) == ("model", plain.model.kwargs)
    assert (config.outputs, config.compute_type) == (("y",), "bfloat16")
    assert (config.require_layers, config.valid_tokens) == (0, "mask")
    assert config.inputs == plain.inputs


OUT = Path("out")


@pytest.mark.parametrize("wanted", [-1, "most"])
def test_what_is_no_number_of_layers_is_refused(wanted: object):
    with pytest.raises(
        ConfigError, match=rf"require_layers is '{wanted}', expected a number from 0 on"
    ):
        resolved_config(ExportOptions("model.pt", OUT, require_layers=wanted))
