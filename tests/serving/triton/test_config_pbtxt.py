from __future__ import annotations

from dataclasses import replace

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.serving import BatchAxis, ServingSettings
from moh_deploy.serving.triton.config_pbtxt import ModelFacts, Warmup, config_message, config_text
from moh_deploy.serving.triton.text_format import Word

SETTINGS = ServingSettings("m", instances=2, max_batch=16, max_delay_ms=2.5)
FACTS = ModelFacts(
    "python",
    SETTINGS,
    (TensorInfo("x", "float32", ("batch", "seq", 8)), TensorInfo("flag", "bool", ("batch",))),
    (TensorInfo("y", "bfloat16", ("batch", "2*seq", 8)),),
    (Warmup("recorded-0", 3, {"x": (5, 8), "flag": ()}, {"x": "0-0", "flag": "0-1"}),),
    batch_axis=BatchAxis("batch"),
)


def test_batch_axis_is_the_servers():
    message = config_message(FACTS)
    assert message["max_batch_size"] == [16]
    x, flag = message["input"]
    assert x == {"name": ["x"], "data_type": [Word("TYPE_FP32")], "dims": [-1, 8]}
    assert flag == {
        "name": ["flag"],
        "data_type": [Word("TYPE_BOOL")],
        "dims": [1],
        "reshape": [{"shape": []}],
    }
    assert message["output"][0] == {
        "name": ["y"],
        "data_type": [Word("TYPE_BF16")],
        "dims": [-1, 8],
    }


def test_requests_are_joined_for_the_time_that_was_asked():
    (batching,) = config_message(FACTS)["dynamic_batching"]
    assert isinstance(batching, dict)
    assert batching["max_queue_delay_microseconds"] == [2500]
    assert batching["default_queue_policy"] == [{"max_queue_size": [1024]}]


def test_model_that_takes_fewer_samples_sets_the_most():
    facts = replace(FACTS, batch_axis=BatchAxis("batch", 4))
    assert config_message(facts)["max_batch_size"] == [4]


def test_model_without_batch_axis_gets_whole_tensors_and_no_batching():
    message = config_message(replace(FACTS, batch_axis=None, warmups=()))
    assert message["max_batch_size"] == [0]
    assert "dynamic_batching" not in message
    (x, flag) = message["input"]
    assert isinstance(x, dict)
    assert isinstance(flag, dict)
    assert (x["dims"], flag["dims"]) == ([-1, -1, 8], [-1])


def test_warmup_has_the_dims_and_the_file_of_each_input():
    (warmup,) = config_message(FACTS)["model_warmup"]
    assert warmup == {
        "name": ["recorded-0"],
        "batch_size": [3],
        "inputs": [
            {
                "key": ["x"],
                "value": [
                    {
                        "data_type": [Word("TYPE_FP32")],
                        "dims": [5, 8],
                        "input_data_file": ["0-0"],
                    }
                ],
            },
            {
                "key": ["flag"],
                "value": [
                    {"data_type": [Word("TYPE_BOOL")], "dims": [1], "input_data_file": ["0-1"]}
                ],
            },
        ],
    }


def test_native_onnxruntime_gets_the_library_and_its_threads():
    settings = replace(SETTINGS, threads=3)
    facts = replace(FACTS, backend="onnxruntime", library="libk.so", settings=settings)
    text = config_text(facts)
    assert 'model_operations {\n  op_library_filename: "libk.so"\n}' in text
    for key, value in (("intra_op_thread_count", "3"), ("inter_op_thread_count", "1")):
        assert f'key: "{key}"\n  value {{\n    string_value: "{value}"' in text
    assert "EXECUTION_ENV_PATH" not in text


def test_engine_gets_a_gpu_and_its_profiles():
    facts = replace(FACTS, backend="tensorrt", profiles=2, model_file="package/model.engine")
    message = config_message(facts)
    (group,) = message["instance_group"]
    assert group == {"count": [2], "kind": [Word("KIND_GPU")], "profile": ["0", "1"]}
    assert message["default_model_filename"] == ["package/model.engine"]


def test_environment_is_documented_for_the_python_backend():
    assert "EXECUTION_ENV_PATH" in config_text(FACTS)


def test_dtype_that_triton_lacks_is_refused():
    facts = replace(FACTS, outputs=(TensorInfo("y", "complex64", ("batch",)),))
    with pytest.raises(ConfigError, match="'y' is complex64, which Triton has no tensors of"):
        config_message(facts)
