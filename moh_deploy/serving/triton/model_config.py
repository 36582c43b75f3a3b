"""Read `config.pbtxt`: Triton's ModelConfig in the text format of protocol buffers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from moh_deploy.errors import PackageError

ConfigMessage: TypeAlias = Any
"""A protobuf message: classes that are made of a table have no types for mypy."""


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
