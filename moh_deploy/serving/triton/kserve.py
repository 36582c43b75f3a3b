"""Make the YAML that lets KServe serve a bundle with Triton, with a canary.

Source: https://kserve.github.io/website/docs/reference/crd-api
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from moh_deploy.errors import ConfigError
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton.bundle_json import LIBRARIES, REPOSITORY
from moh_deploy.serving.triton.config_pbtxt import Backend
from moh_deploy.serving.triton.probe import PROBE_NAME

# Where KServe puts what `storageUri` names.
_MODELS = "/mnt/models"
_HTTP_PORT, _GRPC_PORT, _METRICS_PORT = 8080, 9000, 8002
CANARY_PERCENT = 10
_LONGEST_NAME = 40  # KServe adds to it, and Kubernetes takes 63 characters


@dataclass(frozen=True)
class Cluster:
    """Names that only the owner of a cluster knows.

    Attributes:
        image: The container: Triton, with moh-deploy where the backend is `python`.
        storage: Where the bundle is: `pvc://models/digits`.
        has_probe: The bundle has a script that asks for an answer.
        is_written: The server writes into the bundle: the log of its guard.
    """

    image: str
    storage: str
    has_probe: bool = False
    is_written: bool = False


def kserve_text(settings: ServingSettings, backend: Backend, cluster: Cluster) -> str:
    """Return a ServingRuntime and an InferenceService that uses it.

    Args:
        settings: Name, instances and threads: their product is the cores to ask for.
        backend: What runs the model: the server's own finds kernels by LD_LIBRARY_PATH only.
        cluster: Container and storage.

    Raises:
        ConfigError: Nothing is left of the name of what Kubernetes allows.
    """
    name = _kubernetes_name(settings.name)
    cores = str(settings.instances * (settings.threads or 1))
    env = {"LD_LIBRARY_PATH": f"{_MODELS}/{LIBRARIES}"} if backend == "onnxruntime" else {}
    documents = (_runtime(name, cluster, cores, env), _service(name, cluster))
    texts = [yaml.safe_dump(one, sort_keys=False, width=100) for one in documents]
    return _COMMENT.format(percent=CANARY_PERCENT) + "---\n".join(texts)


def _runtime(
    name: str, cluster: Cluster, cores: str, env: Mapping[str, str]
) -> Mapping[str, object]:
    container = {
        "name": "kserve-container",
        "image": cluster.image,
        "command": ["tritonserver"],
        "args": [
            f"--model-repository={_MODELS}/{REPOSITORY}",
            f"--http-port={_HTTP_PORT}",
            f"--grpc-port={_GRPC_PORT}",
            f"--metrics-port={_METRICS_PORT}",
        ],
        "env": [{"name": key, "value": value} for key, value in env.items()],
        "ports": [{"name": "http1", "containerPort": _HTTP_PORT, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": cores}, "limits": {"cpu": cores}},
        **_probes(has_probe=cluster.has_probe),
    }
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": f"{name}-triton"},
        "spec": {
            "annotations": {
                "prometheus.kserve.io/path": "/metrics",
                "prometheus.kserve.io/port": str(_METRICS_PORT),
            },
            "supportedModelFormats": [{"name": "triton", "version": "2"}],
            "protocolVersions": ["v2", "grpc-v2"],
            "containers": [container],
        },
    }


def _probes(*, has_probe: bool) -> Mapping[str, object]:
    """Return when a container has started, and when it is to be started again."""
    ready = {"path": "/v2/health/ready", "port": _HTTP_PORT}
    # Loading and warming up may take minutes; nothing else is asked until then.
    found: dict[str, object] = {
        "startupProbe": {"httpGet": ready, "periodSeconds": 5, "failureThreshold": 120},
        "readinessProbe": {"httpGet": ready, "periodSeconds": 5},
    }
    if has_probe:
        ports = [str(_HTTP_PORT), str(_METRICS_PORT)]
        command = ["python3", f"{_MODELS}/{PROBE_NAME}", *ports]
        found["livenessProbe"] = {
            "exec": {"command": command},
            "periodSeconds": 10,
            "timeoutSeconds": 25,
            "failureThreshold": 3,
        }
    return found


def _service(name: str, cluster: Cluster) -> Mapping[str, object]:
    # Without it KServe mounts volumes for reading only.
    writable = {"annotations": {"storage.kserve.io/readonly": "false"}}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, **(writable if cluster.is_written else {})},
        "spec": {
            "predictor": {
                "canaryTrafficPercent": CANARY_PERCENT,
                "model": {
                    "modelFormat": {"name": "triton", "version": "2"},
                    "protocolVersion": "v2",
                    "runtime": f"{name}-triton",
                    "storageUri": cluster.storage,
                },
            }
        },
    }


def _kubernetes_name(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    if not plain or not plain[0].isalpha():
        plain = f"moh-{plain}".strip("-")
    if not re.search(r"[a-z0-9]", name.lower()):
        raise ConfigError(
            f"name is '{name}', of which Kubernetes allows nothing; expected letters and digits."
        )
    return plain


_COMMENT = """\
# The first time it is applied, all traffic goes to this bundle. To bring in the next one, put its
# place into storageUri and apply: {percent} % of the traffic go to it. Without canaryTrafficPercent
# all of it does; with 0 it is back with the one before. Nothing promotes by metrics: watch them,
# and decide. canaryTrafficPercent is for KServe on Knative.
"""
