import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml

from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package import TensorInfo
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton.bundle_json import Bundle, LibraryInfo
from moh_deploy.serving.triton.config_pbtxt import (
    config_class,
    config_text,
    kserve_text,
    parse_config,
)
from tests.nightly import nightly
from tests.serving.triton.triton_environment import python_or_skip

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


def test_every_form_that_people_write_is_read():
    text = """
    # a comment
    name: "a" 'b'   ; backend: "python",
    max_batch_size: 0x10
    input [ { name: "x" dims: [ 1, -1 ] }, { name: "y" } ]
    instance_group < count: 2 kind: KIND_CPU >
    optimization { eager_batching: true }
    """
    config = parse_config(text)
    assert (config.name, config.backend, config.max_batch_size) == ("ab", "python", 16)
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [
        ("x", [1, -1]),
        ("y", []),
    ]
    (group,) = config.instance_group
    assert (
        group == config_class()(instance_group=[{"count": 2, "kind": "KIND_CPU"}]).instance_group[0]
    )
    assert config.optimization.eager_batching


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 'x'\ninput {", 'line 2, column 7: Expected "}"'),
        ("name 'x'", """line 1, column 6: 'name 'x'': Expected ":\""""),
        ("\n\nname: @", "line 3, column 7"),
        ("max_batch_size: 08", "line 1, column 17: 'max_batch_size: 08': Couldn't parse integer"),
        (
            "name: 'x' model_operations {\n  op_library: 'x'\n}",
            'line 2, column 3: Message type "triton.Operations" has no field named "op_library"',
        ),
        ("instance_group { kind: KIND_TPU }", "has no value named KIND_TPU"),
        ("max_batch_size: 1 max_batch_size: 2", 'should not have multiple "max_batch_size"'),
        ("parameters {" * 3000, 'has no field named "parameters"'),
    ],
)
def test_error_names_line_and_column(text: str, message: str):
    with pytest.raises(PackageError) as error:
        parse_config(text)
    assert message in error.value.message
    assert len(error.value.message) < 400


TRITONS_OWN = """
import json, sys
from tritonclient.grpc import model_config_pb2

def fields(message, seen=()):
    for field in message.fields:
        yield [*seen, field.name], field.cpp_type, field.is_repeated, [
            value.name for value in field.enum_type.values] if field.enum_type else []
        if field.message_type:
            yield from fields(field.message_type, (*seen, field.name))

json.dump(sorted(fields(model_config_pb2.ModelConfig.DESCRIPTOR)), sys.stdout)
"""


@nightly
def test_table_has_the_names_and_types_of_tritons_own_descriptor():
    ran = subprocess.run(
        [python_or_skip(), "-c", TRITONS_OWN], capture_output=True, text=True, check=True
    )
    own = json.loads(json.dumps(sorted(fields(config_class().DESCRIPTOR))))
    assert own == json.loads(ran.stdout)


def fields(message: Any, seen: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each field, its type, whether it is repeated, and its enum's names."""
    for field in message.fields:
        names = [value.name for value in field.enum_type.values] if field.enum_type else []
        yield [*seen, field.name], field.cpp_type, field.is_repeated, names
        if field.message_type:
            yield from fields(field.message_type, (*seen, field.name))


# KServe's YAML: the keys and types that its own models (kserve 0.21) give every value.


# Types by their names; a list has entries of its one type.
RUNTIME, SERVICE = yaml.safe_load_all("""
apiVersion: str
kind: str
metadata: {name: str}
spec:
  annotations: {str: str}
  supportedModelFormats: [{name: str, version: str}]
  protocolVersions: [str]
  containers:
    - name: str
      image: str
      command: [str]
      args: [str]
      ports: [{name: str, containerPort: int, protocol: str}]
      resources: {requests: {cpu: str}, limits: {cpu: str}}
      startupProbe: {httpGet: {path: str, port: int}, periodSeconds: int, failureThreshold: int}
      readinessProbe: {httpGet: {path: str, port: int}, periodSeconds: int}
      livenessProbe:
        exec: {command: [str]}
        periodSeconds: int
        timeoutSeconds: int
        failureThreshold: int
---
apiVersion: str
kind: str
metadata: {name: str}
spec:
  predictor:
    canaryTrafficPercent: int
    model:
      modelFormat: {name: str, version: str}
      protocolVersion: str
      runtime: str
      storageUri: str
""")


def matches(value: object, schema: Any) -> bool:
    """Tell whether a value has the keys of a schema and no others, with its types."""
    if isinstance(schema, str):
        return type(value).__name__ == schema
    if isinstance(schema, list):
        return isinstance(value, list) and all(matches(item, schema[0]) for item in value)
    if "str" in schema:
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return (
        isinstance(value, dict)
        and value.keys() == schema.keys()
        and all(matches(value[key], schema[key]) for key in schema)
    )


def kserve(
    settings: ServingSettings, changes: Mapping[str, Any] | None = None, **options: Any
) -> tuple[Any, Any]:
    """Return the ServingRuntime and the InferenceService of a bundle, with changes of it."""
    bundle = replace(Bundle("python", settings, (), (), {}, "", 1), **(changes or {}))
    given = {"image": None, "storage": None, **options}
    runtime, service = yaml.safe_load_all(kserve_text(bundle, **given))
    return runtime, service


@pytest.mark.parametrize("guard", [False, True])
def test_kserve_gets_a_runtime_and_a_service_that_uses_it(guard: bool):
    settings = ServingSettings("My_Digits.v2", instances=2, threads=3, guard=guard)
    runtime, service = kserve(settings, image="i:1", storage="pvc://m/'d': #", has_probe=True)
    assert matches(runtime, RUNTIME)
    # A volume is mounted for reading, unless the guard writes its log.
    writable = {"storage.kserve.io/readonly": "false"} if guard else None
    assert service["metadata"].pop("annotations", None) == writable
    assert matches(service, SERVICE)
    assert runtime["metadata"]["name"] == "my-digits-v2-triton"
    assert service["spec"]["predictor"]["model"]["runtime"] == "my-digits-v2-triton"
    assert service["spec"]["predictor"]["model"]["storageUri"] == "pvc://m/'d': #"
    (container,) = runtime["spec"]["containers"]
    assert container["image"] == "i:1"
    assert container["resources"]["limits"] == {"cpu": "6"}
    assert "--model-repository=/mnt/models/repository" in container["args"]
    assert not any("--backend-config" in option for option in container["args"])


def test_server_of_an_engine_gets_its_option():
    library = LibraryInfo("lib/l.so", None, "x86_64")
    runtime, _ = kserve(ServingSettings("m"), {"backend": "tensorrt", "library": library})
    (container,) = runtime["spec"]["containers"]
    assert container["args"][-1] == "--backend-config=tensorrt,plugins=/mnt/models/lib/l.so"
    assert "livenessProbe" not in container


@pytest.mark.parametrize(
    ("name", "expected"), [("8_bit", "moh-8-bit"), ("a" * 80, "a" * 40), ("_x_", "x")]
)
def test_name_becomes_one_that_kubernetes_takes(name: str, expected: str):
    _, service = kserve(ServingSettings(name))
    assert service["metadata"]["name"] == expected
    assert service["spec"]["predictor"]["model"]["storageUri"] == f"pvc://models/{name}"


def test_name_without_a_letter_or_digit_is_refused():
    with pytest.raises(ConfigError, match="name is '___', expected a letter or a digit"):
        kserve(ServingSettings("___"))
