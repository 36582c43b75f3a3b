"""Make the `config.pbtxt` that tells Triton what a model takes, returns and runs on.

Source: https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.serving.batches import BatchAxis
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton.text_format import TextMessage, TextValue, Word, to_text

CONFIG_NAME = "config.pbtxt"

Backend = Literal["python", "onnxruntime", "tensorrt"]
"""What runs the model in the server: our own code, or the server's own backends."""

TRITON_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}

MOST_WAITING = 1024
"""Requests that wait for an instance; the server refuses what comes beyond."""


@dataclass(frozen=True)
class Warmup:
    """Inputs that the server runs once before it takes requests.

    Attributes:
        name: Of the sample.
        samples: How often each input's one row is repeated to a batch; 1 without a batch axis.
        shapes: Name of each input to its sizes, without the batch axis.
        files: Name of each input to its file below `warmup/`.
    """

    name: str
    samples: int
    shapes: Mapping[str, tuple[int, ...]]
    files: Mapping[str, str]


@dataclass(frozen=True)
class ModelFacts:
    """The facts that config.pbtxt is made of.

    Attributes:
        backend: What runs the model.
        settings: Name, instances, threads, batches.
        inputs: What it takes.
        outputs: What it returns.
        warmups: What to run at the start.
        library: File name of the kernel library, for the `onnxruntime` backend.
        model_file: File of the model in the version's directory, where it has not the usual name.
        profiles: How many optimisation profiles an engine has.
    """

    backend: Backend
    settings: ServingSettings
    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]
    warmups: Sequence[Warmup] = ()
    library: str | None = None
    model_file: str | None = None
    profiles: int = 0
    batch_axis: BatchAxis | None = None

    @property
    def max_batch(self) -> int:
        """The most samples in a batch; 0 where requests cannot be joined."""
        if self.batch_axis is None:
            return 0
        most = self.batch_axis.most
        return self.settings.max_batch if most is None else min(most, self.settings.max_batch)


def config_text(facts: ModelFacts) -> str:
    """Return the text of `config.pbtxt`.

    Raises:
        ConfigError: Triton has no such dtype.
    """
    comments = _PYTHON_COMMENTS if facts.backend == "python" else ""
    return to_text(config_message(facts)) + comments


def config_message(facts: ModelFacts) -> TextMessage:
    """Return what `config.pbtxt` says; see `config_text`."""
    is_batched = facts.batch_axis is not None
    kind = "KIND_GPU" if facts.backend == "tensorrt" else "KIND_CPU"
    group: dict[str, Sequence[TextValue]] = {
        "count": [facts.settings.instances],
        "kind": [Word(kind)],
    }
    if facts.profiles > 1:
        group["profile"] = [str(index) for index in range(facts.profiles)]
    message: dict[str, Sequence[TextValue]] = {
        "name": [facts.settings.name],
        "backend": [facts.backend],
        "max_batch_size": [facts.max_batch],
        "input": [tensor_message(one, is_batched=is_batched) for one in facts.inputs],
        "output": [tensor_message(one, is_batched=is_batched) for one in facts.outputs],
        "instance_group": [group],
        "version_policy": [{"specific": [{"versions": [int(facts.settings.version)]}]}],
    }
    if facts.model_file is not None:
        message["default_model_filename"] = [facts.model_file]
    if is_batched:
        message["dynamic_batching"] = [_batching(facts.settings)]
    if facts.library is not None:
        message["model_operations"] = [{"op_library_filename": [facts.library]}]
    if parameters := _parameters(facts):
        message["parameters"] = parameters
    if facts.warmups:
        message["model_warmup"] = [_warmup_message(one, facts) for one in facts.warmups]
    return message


def tensor_message(info: TensorInfo, *, is_batched: bool) -> TextMessage:
    """Return an entry of `input` or `output`: its batch axis is the server's.

    Raises:
        ConfigError: Triton has no such dtype.
    """
    sizes = [size if isinstance(size, int) else -1 for size in info.shape[is_batched:]]
    message: dict[str, Sequence[TextValue]] = {
        "name": [info.name],
        "data_type": [Word(triton_type(info))],
        # Triton has no tensors without axes: clients see one of size 1, the model none.
        "dims": sizes or [1],
    }
    if not sizes and is_batched:  # else it refuses that, and python_model.py does it
        message["reshape"] = [{"shape": []}]
    return message


def triton_type(info: TensorInfo) -> str:
    """Return `TYPE_FP32` for float32.

    Raises:
        ConfigError: Triton has no such dtype.
    """
    if info.dtype not in TRITON_TYPES:
        raise ConfigError(
            f"'{info.name}' is {info.dtype}, which Triton has no tensors of; expected one of"
            f" {', '.join(TRITON_TYPES)}."
        )
    return TRITON_TYPES[info.dtype]


def _batching(settings: ServingSettings) -> TextMessage:
    policy: dict[str, Sequence[TextValue]] = {"max_queue_size": [MOST_WAITING]}
    return {
        "max_queue_delay_microseconds": [round(settings.max_delay_ms * 1000)],
        "default_queue_policy": [policy],
    }


def _parameters(facts: ModelFacts) -> list[TextValue]:
    if facts.backend != "onnxruntime":
        return []  # our own code reads bundle.json; an engine has no threads
    # The most common complaint about that backend: every session takes all cores.
    threads = facts.settings.threads or 1
    return [
        _parameter("intra_op_thread_count", str(threads)),
        _parameter("inter_op_thread_count", "1"),
    ]


def _parameter(key: str, value: str) -> TextMessage:
    return {"key": [key], "value": [{"string_value": [value]}]}


def _warmup_message(warmup: Warmup, facts: ModelFacts) -> TextMessage:
    types = {one.name: triton_type(one) for one in facts.inputs}
    inputs: list[TextValue] = [
        {
            "key": [name],
            "value": [
                {
                    "data_type": [Word(types[name])],
                    "dims": list(warmup.shapes[name]) or [1],
                    "input_data_file": [file],
                }
            ],
        }
        for name, file in warmup.files.items()
    ]
    return {"name": [warmup.name], "batch_size": [warmup.samples], "inputs": inputs}


# Read by Triton (the first) and by our model (the second).
_PYTHON_COMMENTS = """\
# The environment with moh-deploy, a folder with bin/activate or an archive of conda-pack;
# without it, what PATH and PYTHONPATH of the server lead to:
#   parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/path/of/venv" } }
# Write into the server's log which requests made up each batch, by their ids:
#   parameters { key: "log_batches" value { string_value: "1" } }
"""
