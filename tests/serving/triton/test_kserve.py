"""KServe's YAML: the keys and types that its own models (kserve 0.21) give every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml

from moh_deploy.errors import ConfigError
from moh_deploy.serving import ServingSettings
from moh_deploy.serving.triton.bundle_json import Bundle, LibraryInfo
from moh_deploy.serving.triton.config_pbtxt import kserve_text

RUNTIME = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "annotations": {str: str},
        "supportedModelFormats": [{"name": str, "version": str}],
        "protocolVersions": [str],
        "containers": [
            {
                "name": str,
                "image": str,
                "command": [str],
                "args": [str],
                "ports": [{"name": str, "containerPort": int, "protocol": str}],
                "resources": {"requests": {"cpu": str}, "limits": {"cpu": str}},
                "startupProbe": {
                    "httpGet": {"path": str, "port": int},
                    "periodSeconds": int,
                    "failureThreshold": int,
                },
                "readinessProbe": {
                    "httpGet": {"path": str, "port": int},
                    "periodSeconds": int,
                },
                "livenessProbe": {
                    "exec": {"command": [str]},
                    "periodSeconds": int,
                    "timeoutSeconds": int,
                    "failureThreshold": int,
                },
            }
        ],
    },
}
SERVICE = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "predictor": {
            "canaryTrafficPercent": int,
            "model": {
                "modelFormat": {"name": str, "version": str},
                "protocolVersion": str,
                "runtime": str,
                "storageUri": str,
            },
        }
    },
}


def matches(value: object, schema: Any) -> bool:
    """Tell whether a value has the keys of a schema and no others, with its types."""
    if isinstance(schema, type):
        return type(value) is schema
    if isinstance(schema, list):
        return isinstance(value, list) and all(matches(one, schema[0]) for one in value)
    if str in schema:
        return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
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
