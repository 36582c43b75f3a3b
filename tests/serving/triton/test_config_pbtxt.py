from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.serving import ServingSettings
from moh_deploy.serving.triton.bundle_json import Bundle
from moh_deploy.serving.triton.config_pbtxt import config_class, config_text, parse_config

NAME = '"ü" \\ \x01\n{\''  # ONNX takes any text
BUNDLE = Bundle(
    "python",
    ServingSettings("m", instances=2, max_delay_ms=2.5),
    (TensorInfo("x", "float32", ("batch", "seq", 8)), TensorInfo(NAME, "bool", ("batch",))),
    (TensorInfo("y", "bfloat16", ("batch", "2*seq", 8)),),
    versions={},
    package_sha256="",
    max_batch=16,
)
WARMUP = {
    "name": "recorded-0",
    "batch_size": 3,
    "inputs": {'"x"': {"data_type": "TYPE_FP32", "dims": [5, 8], "file": "0-0"}},
}


def config(bundle: Bundle, **options: Any) -> Any:
    """Return the message that a server would read."""
    return parse_config(config_text(bundle, **options))


def test_batch_axis_is_the_servers():
    found, part = config(BUNDLE), config_class()
    assert found.max_batch_size == 16
    assert list(found.input) == list(
        part(
            input=[
                {"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 8]},
                {"name": NAME, "data_type": "TYPE_BOOL", "dims": [1], "reshape": {}},
            ]
        ).input
    )
    y = {"name": "y", "data_type": "TYPE_BF16", "dims": [-1, 8]}
    assert list(found.output) == list(part(output=[y]).output)


def test_requests_are_joined_for_the_time_that_was_asked():
    batching = config(BUNDLE).dynamic_batching
    assert batching.max_queue_delay_microseconds == 2500
    assert batching.default_queue_policy.max_queue_size == 1024


def test_model_without_batch_axis_gets_whole_tensors_and_no_batching():
    text = config_text(replace(BUNDLE, max_batch=0))
    found = parse_config(text)
    assert "max_batch_size: 0\n" in text
    assert not found.HasField("dynamic_batching")
    assert [list(tensor.dims) for tensor in found.input] == [[-1, -1, 8], [-1]]
    scalar = config(replace(BUNDLE, max_batch=0, inputs=(TensorInfo("t", "int64", ()),)))
    assert list(scalar.input[0].dims) == [1]
    assert not scalar.input[0].HasField("reshape")  # which Triton refuses there


def test_warmup_has_the_dims_and_the_file_of_each_input():
    found = config(BUNDLE, warmups=[WARMUP])
    value = {"data_type": "TYPE_FP32", "dims": [5, 8], "input_data_file": "0-0"}
    warmup = {**WARMUP, "inputs": [{"key": '"x"', "value": value}]}
    assert list(found.model_warmup) == list(config_class()(model_warmup=[warmup]).model_warmup)


def test_engine_gets_a_gpu_and_its_profiles():
    engine = replace(BUNDLE, backend="tensorrt")
    found = config(engine, engine="model.engine", profiles=2)
    group = {"count": 2, "kind": "KIND_GPU", "profile": ["0", "1"]}
    assert list(found.instance_group) == list(config_class()(instance_group=[group]).instance_group)
    assert found.default_model_filename == "package/model.engine"
    assert not config(engine, engine="model.engine", profiles=1).instance_group[0].profile
    assert "EXECUTION_ENV_PATH" not in config_text(engine, engine="model.engine")


def test_environment_is_documented_for_the_python_backend():
    assert "EXECUTION_ENV_PATH" in config_text(BUNDLE)


def test_dtype_that_triton_lacks_is_refused():
    lacking = replace(BUNDLE, outputs=(TensorInfo("y", "complex64", ("batch",)),))
    with pytest.raises(ConfigError, match="'y' is complex64, which Triton has no tensors of"):
        config_text(lacking)
