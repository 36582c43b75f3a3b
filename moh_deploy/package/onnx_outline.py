"""Check that a file is a whole ONNX model, and find its external data, without reading weights.

A package is opened by every command, and its model may be a gigabyte in one file, which protobuf
would copy. Here the file is mapped, and the pages that hold weights are never touched.

Source: the Protocol Buffers encoding specification; onnx.proto, whose descriptors tell which fields
are messages and text.
"""

from __future__ import annotations

import functools
import math
import mmap
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir

from moh_deploy.errors import PackageError
from moh_deploy.system.bounded_file import open_regular
from moh_deploy.system.replaceable import FileKind


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose data lies outside of model.onnx.

    Attributes:
        name: Of the tensor; empty where it has none.
        entries: What is said of the place: `location`, `offset`, `length`.
        num_bytes: What its shape and dtype take; None where nothing can have them.
    """

    name: str
    entries: Mapping[str, str]
    num_bytes: int | None


def read_outline(path: Path) -> tuple[ExternalTensor, ...]:
    """Walk over all fields of a model, and return its tensors with external data.

    Raises:
        PackageError: The file cannot be read, is no ONNX model, or has a name that is not UTF-8.
    """
    try:
        with open_regular(path) as file:
            if path.stat().st_size == 0:  # which cannot be mapped
                raise PackageError(f"{path} cannot be read as an ONNX model: it is empty.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                reader = _Reader(data)
                reader.read()
                return tuple(reader.external)
    except FileNotFoundError as error:
        raise PackageError(f"{path} does not exist.") from error
    except OSError as error:
        raise PackageError(f"{path}: cannot be read: {error.strerror}.") from error
    except DamagedError as error:
        raise PackageError(f"{path} cannot be read as an ONNX model: {error}.") from error


class DamagedError(Exception):
    """The bytes are no ONNX model."""


_Fields = dict[int, tuple[str, str]]
"""Number of a field to its name, and to what it holds: the name of a message, or `_TEXT`, or how
many bytes a packed number takes. Bytes are left out."""

_TEXT, _VARINTS = "text", "varints"
_FIXED_SIZES = {"4": 4, "8": 8}

_TENSOR = onnx.TensorProto.DESCRIPTOR.full_name
_MODEL = onnx.ModelProto.DESCRIPTOR.full_name
_DEEPEST = 100  # protobuf itself reads no deeper

_VARINT, _FIXED_64, _LENGTH_DELIMITED, _FIXED_32 = 0, 1, 2, 5
_LONGEST_VARINT = 10
_TOO_LONG_VARINT = re.compile(rb"[\x80-\xff]{10}")
_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER
_HEAD_OF_TENSOR = {
    onnx.TensorProto.DIMS_FIELD_NUMBER,
    onnx.TensorProto.DATA_TYPE_FIELD_NUMBER,
    onnx.TensorProto.NAME_FIELD_NUMBER,
}
_LARGEST_FIELD = (1 << 29) - 1


@functools.cache
def _fields_by_message() -> dict[str, _Fields]:
    """Return the fields to look at, for every message that a model is made of."""
    found: dict[str, _Fields] = {}
    # The descriptors of the installed onnx are the list of messages, so none is forgotten here.
    pending: list[Any] = [onnx.ModelProto.DESCRIPTOR]
    while pending:
        message = pending.pop()
        if message.full_name in found:
            continue
        found[message.full_name] = {
            field_.number: (field_.name, _held_by(field_))
            for field_ in message.fields
            if field_.type != field_.TYPE_BYTES
        }
        pending += [field_.message_type for field_ in message.fields if field_.message_type]
    return found


def _held_by(field: Any) -> str:
    if field.message_type:
        return str(field.message_type.full_name)
    if field.type == field.TYPE_STRING:
        return _TEXT
    # Packed repeated numbers: floats and doubles are of fixed size, all others are varints.
    return {field.TYPE_FLOAT: "4", field.TYPE_DOUBLE: "8"}.get(field.type, _VARINTS)


@dataclass
class _Reader:
    """Walks over the fields of a model, and notes tensors with external data."""

    data: mmap.mmap
    external: list[ExternalTensor] = field(default_factory=list)

    def read(self) -> None:
        try:
            # A read beyond the map raises IndexError: the file ends there.
            self._walk(0, len(self.data), _MODEL, ())
        except IndexError:
            raise DamagedError("it ends in the middle of a number") from None

    def _walk(self, at: int, end: int, message: str, path: tuple[str, ...]) -> None:
        """Look at all fields of a message; `path` has the names of the fields that lead to it."""
        if len(path) > _DEEPEST:
            raise DamagedError(f"it is nested deeper than {_DEEPEST} levels")
        data, fields, begin = self.data, _fields_by_message()[message], at
        # Both are known only when the whole tensor was seen: fields may come in any order.
        has_external = False
        raw_bytes: int | None = None
        # The wire format: a tag (number << 3 | kind), then a varint, 4 or 8 bytes, or a length and
        # bytes.
        while at < end:
            tag, at = read_varint(data, at)
            kind = tag & 7
            # Numbers that no field can have tell damage from an unknown field, which is skipped.
            if not 0 < tag >> 3 <= _LARGEST_FIELD:
                raise DamagedError(f"byte {at - 1} begins a field of number {tag >> 3}")
            if kind == _LENGTH_DELIMITED:
                size, at = read_varint(data, at)
                stop = at + size
                # A length that leads out of its message is damage, or an attempt to read elsewhere.
                if stop > end:
                    raise DamagedError(
                        f"a field of {size} bytes begins at byte {at}, but what holds it ends at"
                        f" {end}"
                    )
                name, held = fields.get(tag >> 3, ("", ""))
                if message == _TENSOR and tag >> 3 == _RAW_DATA:
                    raw_bytes = size
                elif held == _TEXT:
                    _check_text((*path, name), data[at:stop])
                # Packed weights are megabytes: they are checked without being decoded.
                elif held == _VARINTS or held in _FIXED_SIZES:
                    self._check_packed(at, stop, held)
                elif held:
                    self._walk(at, stop, held, (*path, name))
                    has_external |= name == "external_data" and message == _TENSOR
                at = stop
            elif kind == _VARINT:
                _, at = read_varint(data, at)
            elif kind in (_FIXED_64, _FIXED_32):
                at += 8 if kind == _FIXED_64 else 4
            else:
                raise DamagedError(f"byte {at - 1} begins a field of a kind that ONNX has not")
        # The last field was cut off by the end of its message.
        if at != end:
            raise DamagedError(f"a field does not end at byte {end}, where what holds it does")
        if has_external:
            self.external.append(_external(data[begin:end]))
        elif raw_bytes is not None:
            self._check_raw(begin, end, raw_bytes)

    def _check_raw(self, begin: int, end: int, raw_bytes: int) -> None:
        """Compare the size of a tensor's data with its shape; the data itself is stepped over."""
        # Dims, dtype and name alone are parsed: raw_data is stepped over, and never touched.
        head, at, data = b"", begin, self.data
        while at < end:
            start = at
            tag, at = read_varint(data, at)
            size = 0
            if tag & 7 == _LENGTH_DELIMITED:
                size, at = read_varint(data, at)
            elif tag & 7 == _VARINT:
                _, at = read_varint(data, at)
            else:
                size = 8 if tag & 7 == _FIXED_64 else 4
            at += size
            if tag >> 3 in _HEAD_OF_TENSOR:
                head += data[start:at]
        tensor = _parsed(onnx.TensorProto.FromString, head)
        if _num_bytes(tensor) != raw_bytes:
            raise DamagedError(
                f"tensor '{tensor.name[:200]}' is {_described(tensor)}, but has {raw_bytes} bytes"
            )

    def _check_packed(self, at: int, stop: int, held: str) -> None:
        """Weights may be packed numbers: they are looked at as bytes, and only as varints."""
        if held == _VARINTS:
            # The last byte ends a number, and none is longer than ten bytes.
            whole = at == stop or self.data[stop - 1] < 0x80
            whole &= _TOO_LONG_VARINT.search(self.data, at, stop) is None
        else:
            whole = (stop - at) % _FIXED_SIZES[held] == 0
        if not whole:
            raise DamagedError(f"the numbers from byte {at} to byte {stop} are cut off")


def _check_text(path: tuple[str, ...], content: bytes) -> None:
    try:
        content.decode()
    except UnicodeDecodeError:
        raise DamagedError(f"{'.'.join(path)} is {content[:60]!r}, which is not UTF-8") from None


def read_varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Return a number of protobuf's, and where it ends.

    Raises:
        DamagedError: It has no end.
        IndexError: The data ends before.
    """
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    number = 0
    # Ten groups of seven bits hold 64.
    for index in range(_LONGEST_VARINT):
        byte = data[at + index]
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, at + index + 1
    raise DamagedError(f"a number at byte {at} has no end")


def _parsed(parse: Callable[[bytes], Any], content: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return parse(content)
    except DecodeError as error:
        raise DamagedError(str(error)) from error


def _external(content: bytes) -> ExternalTensor:
    """Parse a tensor whose data lies elsewhere: little but its place is in model.onnx."""
    tensor = _parsed(onnx.TensorProto.FromString, content)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return ExternalTensor(tensor.name, entries, _num_bytes(tensor))


def _num_bytes(tensor: onnx.TensorProto) -> int | None:
    """Return the bytes of a tensor by shape and dtype; None where no data can have these."""
    try:
        bits = int(ir.DataType(tensor.data_type).itemsize * 8)
    except (ValueError, TypeError, KeyError):  # unknown; text, whose elements are of any length
        return None
    if any(size < 0 for size in tensor.dims):
        return None
    elements: int = math.prod(tensor.dims)
    # Rounded up: int4 packs two numbers into a byte.
    return -(-elements * bits // 8)


def _described(tensor: onnx.TensorProto) -> str:
    known = tensor.data_type in onnx.TensorProto.DataType.values()
    dtype = onnx.TensorProto.DataType.Name(tensor.data_type) if known else tensor.data_type
    return f"{dtype}{list(tensor.dims)[:20]}"


# Load the graph of an ONNX file and leave the data of its weights on disk.
#
# protobuf reads a file as a whole. Who only asks what the nodes are would copy all weights, which
# are most of it, and do so again for every question.
#
# Source: the Protocol Buffers encoding specification; onnx.proto for the numbers of the fields.

_WEIGHTLESS_MODEL_VARINT, _WEIGHTLESS_MODEL_FIXED_64, _WEIGHTLESS_MODEL_LENGTH_DELIMITED = 0, 1, 2
_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER

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
    for item in _fields(data, 0, len(data)):
        if item.number != _GRAPH:
            model += data[item.begin : item.end]
            continue
        for part in _fields(data, item.content, item.end):
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
        if kind == _WEIGHTLESS_MODEL_LENGTH_DELIMITED:
            size, at = read_varint(data, at)
        elif kind == _WEIGHTLESS_MODEL_VARINT:
            size = read_varint(data, at)[1] - at
        elif kind == _WEIGHTLESS_MODEL_FIXED_64:
            size = 8
        yield _Field(tag >> 3, begin, at, at + size)
        at += size
