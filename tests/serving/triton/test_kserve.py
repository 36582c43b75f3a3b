"""The file for KServe has the keys and types of its own models, and names that Kubernetes takes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from moh_deploy.errors import ConfigError
from moh_deploy.serving import ServingSettings
from moh_deploy.serving.triton.kserve import Cluster, kserve_text

# KServe: every key that is written, with the type that its own models (kserve 0.21) give the value.
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
                "env": [{"name": str, "value": str}],
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


@pytest.mark.parametrize("backend", ["python", "onnxruntime"])
def test_kserve_gets_a_runtime_and_a_service_that_uses_it(backend: Any):
    settings = ServingSettings("My_Digits.v2", instances=2, threads=3)
    is_written = backend == "python"
    cluster = Cluster("i:1", "pvc://models/d", has_probe=True, is_written=is_written)
    runtime, service = yaml.safe_load_all(kserve_text(settings, backend, cluster))
    assert matches(runtime, RUNTIME)
    # A volume is mounted for reading, where nothing else is asked for.
    writable = {"storage.kserve.io/readonly": "false"} if is_written else None
    assert service["metadata"].pop("annotations", None) == writable
    assert matches(service, SERVICE)
    assert runtime["metadata"]["name"] == "my-digits-v2-triton"
    assert service["spec"]["predictor"]["model"]["runtime"] == "my-digits-v2-triton"
    (container,) = runtime["spec"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "6"}
    assert "--model-repository=/mnt/models/repository" in container["args"]
    libraries = [{"name": "LD_LIBRARY_PATH", "value": "/mnt/models/lib"}]
    assert container["env"] == (libraries if backend == "onnxruntime" else [])


@pytest.mark.parametrize(
    ("name", "expected"), [("8_bit", "moh-8-bit"), ("a" * 80, "a" * 40), ("_x_", "x")]
)
def test_name_becomes_one_that_kubernetes_takes(name: str, expected: str):
    text = kserve_text(ServingSettings(name), "python", Cluster("i", "s"))
    _, service = yaml.safe_load_all(text)
    assert service["metadata"]["name"] == expected


def test_name_of_which_kubernetes_takes_nothing_is_refused():
    with pytest.raises(ConfigError, match="Kubernetes allows nothing"):
        kserve_text(ServingSettings("___"), "python", Cluster("i", "s"))
