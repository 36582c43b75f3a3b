"""Write the `config.pbtxt` that tells Triton what a model takes, returns and runs on."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from moh_deploy import __version__
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.package import TensorInfo
from moh_deploy.serving.http.tensors import DATATYPES
from moh_deploy.serving.triton.bundle_json import SERVED, Bundle

# Fill the templates of a bundle's files: alert rules and dashboard fit `serve` and Triton.


def filled(name: str, /, **values: object) -> str:
    """Return the text of a file, `kserve.yaml`, with the values in its template."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("moh_deploy.serving"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Strings of JSON are strings of YAML and of protocol buffers, too.
    environment.filters["quoted"] = functools.partial(json.dumps, ensure_ascii=False)
    return environment.get_template(f"{name}.jinja").render(values)


# Read `config.pbtxt`: Triton's ModelConfig in the text format of protocol buffers.

# A protobuf message: classes that are made of a table have no types for mypy.
ConfigMessage: TypeAlias = Any


@functools.cache
def config_class() -> ConfigMessage:
    """Return the class of `ModelConfig` messages, made of the table in `model_config.yaml`."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    table = yaml.safe_load((Path(__file__).parent / "templates/model_config.yaml").read_bytes())
    # proto2 keeps a 0 that was written apart from a field that is absent.
    file = descriptor_pb2.FileDescriptorProto(name="config", package="triton", syntax="proto2")
    field_type = descriptor_pb2.FieldDescriptorProto
    for enum_name, values in table["enums"].items():
        enum = file.enum_type.add(name=enum_name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for message_name, fields in table["messages"].items():
        message = file.message_type.add(name=message_name)
        for number, (name, kind) in enumerate(fields.items(), 1):
            field = message.field.add(name=name, number=number)
            is_repeated, kind = kind.endswith("*"), kind.removesuffix("*")
            field.label = field_type.LABEL_REPEATED if is_repeated else field_type.LABEL_OPTIONAL
            if kind in table["messages"] or kind in table["enums"]:
                field.type_name = f".triton.{kind}"
            else:
                field.type = field_type.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("triton.ModelConfig"))


def parse_config(text: str) -> ConfigMessage:
    """Parse the text of a `config.pbtxt`.

    Raises:
        PackageError: It is no such text, or has a key that Triton does not know, which keeps it
            from loading the model. The message has line and column.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, config_class()())
    except text_format.ParseError as error:
        # Its own text begins with both numbers, and may quote the whole line.
        reason = str(error).partition(" : ")[2].rstrip(".")[:300]
        place = f"line {error.GetLine()}, column {error.GetColumn()}"
        raise PackageError(f"{place}: {reason}.") from None


# Write the YAML that lets KServe serve a bundle with Triton, with a canary.
#
# Source: https://kserve.github.io/website/docs/reference/crd-api

_LONGEST_NAME = 40  # KServe adds to it, and Kubernetes takes 63 characters


def kserve_text(
    bundle: Bundle, *, image: str | None, storage: str | None, has_probe: bool = False
) -> str:
    """Return a ServingRuntime and an InferenceService that uses it.

    Args:
        bundle: Name, instances and threads: their product is the cores to ask for.
        image: The container: Triton, with moh-deploy for the Python backend.
        storage: Where the cluster finds the bundle: `pvc://models/digits`.
        has_probe: The bundle has a script that asks for an answer.

    Raises:
        ConfigError: The name has no letter or digit, which Kubernetes needs.
    """
    settings = bundle.settings
    name = re.sub(r"[^a-z0-9]+", "-", settings.name.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    if not name:
        raise ConfigError(
            f"name is '{settings.name}', expected a letter or a digit, for Kubernetes."
        )
    return filled(
        "kserve.yaml",
        name=name if name[0].isalpha() else f"moh-{name}",
        image=image or f"triton-with-moh-deploy:{__version__}",
        storage=storage or f"pvc://models/{settings.name}",
        cores=settings.instances * (settings.threads or 1),
        option=bundle.backend_config("/mnt/models"),
        has_probe=has_probe,
        is_written=settings.guard,
    )


# Requests that wait for an instance; the server refuses more.
MOST_WAITING = 1024


def config_text(
    bundle: Bundle,
    *,
    warmups: Sequence[Mapping[str, object]] = (),
    engine: str | None = None,
    profiles: int = 1,
) -> str:
    """Return the text of `config.pbtxt`.

    Args:
        warmups: Name, batch size and inputs of each warm-up.
        engine: File name of the engine; None for a package.
        profiles: Number of the engine's optimisation profiles.

    Raises:
        ConfigError: Triton has no such dtype.
    """
    is_batched = bundle.max_batch > 0
    return filled(
        "config.pbtxt",
        settings=bundle.settings,
        backend=bundle.backend,
        max_batch=bundle.max_batch,
        delay_us=round(bundle.settings.max_delay_ms * 1000),
        most_waiting=MOST_WAITING,
        inputs=[tensor_config(info, is_batched=is_batched) for info in bundle.inputs],
        outputs=[tensor_config(info, is_batched=is_batched) for info in bundle.outputs],
        warmups=warmups,
        engine=None if engine is None else f"{SERVED}/{engine}",
        profiles=profiles,
    )


def tensor_config(info: TensorInfo, *, is_batched: bool) -> dict[str, object]:
    """Return an entry of `input` or `output`, without the batch axis: that is the server's.

    Raises:
        ConfigError: Triton has no such dtype.
    """
    sizes = [size if isinstance(size, int) else -1 for size in info.shape[is_batched:]]
    # Triton has no tensors without axes: clients send an axis of size 1, the model gets none.
    # Without a batch axis it refuses to reshape, and python_model.py does it.
    reshape: dict[str, object] = {"reshape": []} if is_batched and not sizes else {}
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
