from __future__ import annotations

import re
from pathlib import Path

import pytest

from moh_deploy.config.export_config import load_config
from moh_deploy.errors import ConfigError

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


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_inputs_are_written_as_they_are_nested(tmp_path: Path):
    config = load_config(write(tmp_path, NESTED))
    assert [one.name for one in config.inputs] == [
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
