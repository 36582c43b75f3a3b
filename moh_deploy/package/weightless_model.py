"""Load the graph of an ONNX file and leave the data of its weights on disk.

protobuf reads a file as a whole. Who only asks what the nodes are would copy all weights, which are
most of it, and do so again for every question.

Source: the Protocol Buffers encoding specification; onnx.proto for the numbers of the fields.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import onnx

from moh_deploy.errors import PackageError
from moh_deploy.package.onnx_outline import DamagedError, read_outline, read_varint
from moh_deploy.system.bounded_file import open_regular
from moh_deploy.system.replaceable import FileKind

_VARINT, _FIXED_64, _LENGTH_DELIMITED = 0, 1, 2
_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER

# Small ones are constants that somebody may ask for: axes, shapes, scales.
_LARGE_BYTES = 1 << 16


def load_without_weights(path: Path) -> onnx.ModelProto:
    """Load a model whose outline was read before, so that it is known to be whole.

    Args:
        path: The file; external data is not looked at.

    Returns:
        The model. Weights of more than 64 KiB have a name, a shape and a dtype, and no data.

    Raises:
        PackageError: The file cannot be read.
    """
    try:
        with (
            open_regular(path) as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            return _model(data)
    except FileNotFoundError as error:
        raise PackageError(f"{path} does not exist.") from error
    except OSError as error:
        raise PackageError(f"{path}: cannot be read: {error.strerror}.") from error
    # Of a file that changed since: a length that leads out of the map, or what protobuf refuses.
    except (DamagedError, IndexError, ValueError) as error:
        raise PackageError(f"{path} cannot be read as an ONNX model: {error}.") from error


def _is_model(path: Path) -> bool:
    read_outline(path)  # Of other files it raises.
    return bool(load_without_weights(path).graph.output)


ONNX_FILE = FileKind("ONNX model", _is_model)


class _Field(NamedTuple):
    """One field of a message: its number, where it begins, and where its content begins and ends"""

    number: int
    begin: int
    content: int
    end: int


def _model(data: mmap.mmap) -> onnx.ModelProto:
    # A message may come in parts, and parts that follow each other are one message.
    model = b""
    graph: list[bytes] = []
    weights: list[bytes] = []
    for field in _fields(data, 0, len(data)):
        if field.number != _GRAPH:
            model += data[field.begin : field.end]
            continue
        for part in _fields(data, field.content, field.end):
            if part.number == _INITIALIZER:
                weights.append(_tensor(data, part))
            else:
                graph.append(data[part.begin : part.end])
    loaded: onnx.ModelProto = onnx.ModelProto.FromString(model)
    loaded.graph.MergeFromString(b"".join(graph))
    loaded.graph.initializer.extend(map(onnx.TensorProto.FromString, weights))
    return loaded


def _tensor(data: mmap.mmap, weight: _Field) -> bytes:
    """Return the message of a weight, without its data if that is large."""
    if weight.end - weight.content <= _LARGE_BYTES:
        return data[weight.content : weight.end]
    return b"".join(
        data[field.begin : field.end]
        for field in _fields(data, weight.content, weight.end)
        if field.number != _RAW_DATA
    )


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message between two places."""
    while at < end:
        begin = at
        tag, at = read_varint(data, at)
        kind, size = tag & 7, 4
        if kind == _LENGTH_DELIMITED:
            size, at = read_varint(data, at)
        elif kind == _VARINT:
            size = read_varint(data, at)[1] - at
        elif kind == _FIXED_64:
            size = 8
        yield _Field(tag >> 3, begin, at, at + size)
        at += size
