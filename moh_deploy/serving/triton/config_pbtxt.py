"""Write the `config.pbtxt` that tells Triton what a model takes, returns and runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.serving.http.tensors import DATATYPES
from moh_deploy.serving.triton.bundle_json import SERVED, Bundle
from moh_deploy.serving.triton.model_config import config_class

MOST_WAITING = 1024
"""Requests that wait for an instance; the server refuses more."""


def config_text(
    bundle: Bundle,
    *,
    warmups: Sequence[Mapping[str, object]] = (),
    engine: str | None = None,
    profiles: int = 1,
) -> str:
    """Return the text of `config.pbtxt`.

    Args:
        bundle: The model, its tensors and settings.
        warmups: Entries of `model_warmup`.
        engine: File name of the engine; None for a package.
        profiles: Number of the engine's optimisation profiles.

    Raises:
        ConfigError: Triton has no such dtype.
    """
    from google.protobuf import text_format

    settings = bundle.settings
    config = config_class()(
        name=settings.name,
        backend=bundle.backend,
        max_batch_size=bundle.max_batch,
        version_policy={"specific": {"versions": [int(settings.version)]}},
        input=[tensor_config(tensor, is_batched=bundle.max_batch > 0) for tensor in bundle.inputs],
        output=[
            tensor_config(tensor, is_batched=bundle.max_batch > 0) for tensor in bundle.outputs
        ],
        instance_group=[
            {
                "count": settings.instances,
                "kind": "KIND_CPU" if engine is None else "KIND_GPU",
                "profile": [str(index) for index in range(profiles)] if profiles > 1 else [],
            }
        ],
        model_warmup=warmups,
    )
    if engine is not None:
        config.default_model_filename = f"{SERVED}/{engine}"
    if bundle.max_batch:
        config.dynamic_batching.max_queue_delay_microseconds = round(settings.max_delay_ms * 1000)
        config.dynamic_batching.default_queue_policy.max_queue_size = MOST_WAITING
    text = text_format.MessageToString(config, use_short_repeated_primitives=True)
    return str(text) + (_PYTHON_COMMENTS if engine is None else "")


def tensor_config(info: TensorInfo, *, is_batched: bool) -> dict[str, object]:
    """Return an entry of `input` or `output`, without the batch axis: that is the server's.

    Raises:
        ConfigError: Triton has no such dtype.
    """
    sizes = [size if isinstance(size, int) else -1 for size in info.shape[is_batched:]]
    # Triton has no tensors without axes: clients send an axis of size 1, the model gets none.
    reshape: dict[str, object] = {} if sizes else {"reshape": {}}
    return {"name": info.name, "data_type": triton_type(info), "dims": sizes or [1], **reshape}


def triton_type(info: TensorInfo) -> str:
    """Return `TYPE_FP32` for float32.

    Raises:
        ConfigError: Triton has no such dtype.
    """
    if info.dtype not in DATATYPES:
        raise ConfigError(
            f"'{info.name}' is {info.dtype}, which Triton has no tensors of; expected one of"
            f" {', '.join(DATATYPES)}."
        )
    return f"TYPE_{DATATYPES[info.dtype]}"


# Read by Triton (the first) and by our model (the second).
_PYTHON_COMMENTS = """\
# The environment with moh-deploy, a folder with bin/activate or an archive of conda-pack;
# without it, that of the python3 which is first on the server's PATH (PYTHONPATH is ignored):
#   parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/path/of/venv" } }
# Write into the server's log which requests made up each batch, by their ids:
#   parameters { key: "log_batches" value { string_value: "1" } }
"""
