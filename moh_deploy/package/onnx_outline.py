"""Read an ONNX file without its weights: check that it is whole, find its external data, and load
its graph.

A package is opened by every command, and its model may be a gigabyte in one file, which protobuf
would copy. Here the file is mapped, and the pages that hold weights are never touched.

Source: the Protocol Buffers encoding specification; onnx.proto, whose descriptors tell which fields
are messages and text.
"""

import functools
import math
import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from moh_deploy.errors import PackageError
from moh_deploy.system.bounded_file import open_regular
from moh_deploy.system.replaceable import FileKind


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose data lies outside of model.onnx."""

    name: str  # of the tensor; may be empty
    entries: Mapping[str, str]  # what is said of the place: `location`, `offset`, `length`
    num_bytes: int | None  # what its shape and dtype take; None where nothing can have them


def read_outline(path: Path) -> tuple[ExternalTensor, ...]:
    """Walk over all fields of a model, and return its tensors with external data.

    Raises:
        PackageError: The file cannot be read, is no ONNX model, or has a name that is not UTF-8.
    """
    with _mapped(path) as data:
        return tuple(_external_tensors(data, 0, len(data), _MODEL, ()))


def load_without_weights(path: Path) -> onnx.ModelProto:
    """Load a model whose outline was read before, so that it is known to be whole.

    Args:
        path: The file; external data is not looked at.

    Returns:
        The model. Weights of more than 64 KiB have a name, a shape and a dtype, and no data.

    Raises:
        PackageError: The file cannot be read.
    """
    with _mapped(path) as data:
        # A message may come in parts, and parts that follow each other are one message.
        model = b""
        graph: list[bytes] = []
        weights: list[bytes] = []
        for number, _, begin, content, end in _fields(data, 0, len(data)):
            if number != _GRAPH:
                model += data[begin:end]
                continue
            for part, _, start, inner, stop in _fields(data, content, end):
                if part != _INITIALIZER:
                    graph.append(data[start:stop])
                elif stop - inner <= _LARGE_BYTES:
                    weights.append(data[inner:stop])
                else:
                    weights.append(_without(data, inner, stop, _RAW_DATA))
        loaded: onnx.ModelProto = onnx.ModelProto.FromString(model)
        loaded.graph.MergeFromString(b"".join(graph))
        loaded.graph.initializer.extend(map(onnx.TensorProto.FromString, weights))
        return loaded


def _is_model(path: Path) -> bool:
    read_outline(path)  # Of other files it raises.
    return bool(load_without_weights(path).graph.output)


ONNX_FILE = FileKind("ONNX model", _is_model)

_TENSOR = onnx.TensorProto.DESCRIPTOR.full_name
_MODEL = onnx.ModelProto.DESCRIPTOR.full_name
_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER

# Small ones are constants that readers may ask for: axes, shapes, scales.
_LARGE_BYTES = 1 << 16
_DEEPEST = 100  # protobuf itself reads no deeper

_VARINT, _FIXED_64, _LENGTH_DELIMITED, _FIXED_32 = 0, 1, 2, 5
_LONGEST_VARINT = 10
_TOO_LONG_VARINT = re.compile(rb"[\x80-\xff]{10}")
_LARGEST_FIELD = (1 << 29) - 1


class _DamagedError(Exception):
    """The bytes are no ONNX model."""


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """Map a file; what goes wrong in the block is an error of it."""
    from google.protobuf.message import DecodeError

    try:
        with open_regular(path) as file:
            if path.stat().st_size == 0:  # which cannot be mapped
                raise _DamagedError("it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data
    except FileNotFoundError as error:
        raise PackageError(f"{path} does not exist.") from error
    except OSError as error:
        raise PackageError(f"{path}: cannot be read: {error.strerror}.") from error
    except IndexError as error:  # a read beyond the map
        message = f"{path} cannot be read as an ONNX model: it ends in the middle of a number."
        raise PackageError(message) from error
    except (_DamagedError, DecodeError, ValueError) as error:
        raise PackageError(f"{path} cannot be read as an ONNX model: {error}.") from error


_Field = tuple[int, int, int, int, int]
"""One field of a message: its number and kind, and where it, its content and both end: plain
numbers, since a model has a hundred thousand of them."""


def _fields(data: mmap.mmap, at: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message between two places.

    The wire format: a tag (number << 3 | kind), then a varint, 4 or 8 bytes, or a length and bytes.
    """
    while at < end:
        begin, tag = at, data[at]
        # Most numbers are of one byte.
        if tag < 0x80:
            at += 1
        else:
            tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        # Numbers that no field can have tell damage from an unknown field, which is skipped.
        if not 0 < number <= _LARGEST_FIELD:
            raise _DamagedError(f"byte {at - 1} begins a field of number {number}")
        if kind == _LENGTH_DELIMITED:
            size, at = _read_varint(data, at)
            # A length that leads out of its message is damage, or an attempt to read elsewhere.
            if at + size > end:
                raise _DamagedError(
                    f"a field of {size} bytes begins at byte {at}, but what holds it ends at {end}"
                )
        elif kind == _VARINT:
            size = _read_varint(data, at)[1] - at
        elif kind in (_FIXED_64, _FIXED_32):
            size = 8 if kind == _FIXED_64 else 4
        else:
            raise _DamagedError(f"byte {at - 1} begins a field of a kind that ONNX has not")
        yield number, kind, begin, at, at + size
        at += size
    # The last field was cut off by the end of its message.
    if at != end:
        raise _DamagedError(f"a field does not end at byte {end}, where what holds it does")


def _read_varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Return a number of protobuf's, and where it ends."""
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
    raise _DamagedError(f"a number at byte {at} has no end")


def _without(data: mmap.mmap, at: int, end: int, number: int) -> bytes:
    """Return a message without a field, whose pages are not touched."""
    return b"".join(
        data[begin:stop] for field, _, begin, _, stop in _fields(data, at, end) if field != number
    )


_Held = dict[int, tuple[str, str]]
"""Number of a field to its name, and to what it holds: the name of a message, or `_TEXT`, or how
many bytes a packed number takes. Bytes are left out."""

_TEXT, _VARINTS = "text", "varints"
_FIXED_SIZES = {"4": 4, "8": 8}


@functools.cache
def _held_by_message() -> dict[str, _Held]:
    """Return the fields to look at, for every message that a model is made of."""
    found: dict[str, _Held] = {}
    # The descriptors of the installed onnx are the list of messages, so none is forgotten here.
    pending: list[Any] = [onnx.ModelProto.DESCRIPTOR]
    while pending:
        message = pending.pop()
        if message.full_name in found:
            continue
        held = found[message.full_name] = {}
        for field in message.fields:
            # Packed repeated numbers: floats and doubles are of fixed size, others are varints.
            numbers = {field.TYPE_FLOAT: "4", field.TYPE_DOUBLE: "8", field.TYPE_STRING: _TEXT}
            if field.message_type:
                held[field.number] = (field.name, field.message_type.full_name)
                pending.append(field.message_type)
            elif field.type != field.TYPE_BYTES:
                held[field.number] = (field.name, numbers.get(field.type, _VARINTS))
    return found


def _external_tensors(
    data: mmap.mmap, at: int, end: int, message: str, path: tuple[str, ...]
) -> list[ExternalTensor]:
    """Check all fields of a message, and return its tensors whose data is elsewhere.

    Args:
        path: Names of the fields that lead to it.
    """
    if len(path) > _DEEPEST:
        raise _DamagedError(f"it is nested deeper than {_DEEPEST} levels")
    held_fields = _held_by_message()[message]
    # Both are known only when the whole tensor was seen: fields may come in any order.
    has_external, raw_bytes = False, None
    external: list[ExternalTensor] = []
    for number, kind, _, content, stop in _fields(data, at, end):
        if kind != _LENGTH_DELIMITED:
            continue
        name, held = held_fields.get(number, ("", ""))
        if message == _TENSOR and number == _RAW_DATA:
            raw_bytes = stop - content
        elif held == _TEXT:
            try:
                data[content:stop].decode()
            except UnicodeDecodeError:
                shown = f"{'.'.join((*path, name))} is {data[content:stop][:60]!r}"
                raise _DamagedError(f"{shown}, which is not UTF-8") from None
        elif held == _VARINTS or held in _FIXED_SIZES:
            _check_packed(data, content, stop, held)
        elif held:
            external += _external_tensors(data, content, stop, held, (*path, name))
            has_external |= name == "external_data" and message == _TENSOR
    if has_external:
        # Little but its place is in model.onnx.
        tensor = onnx.TensorProto.FromString(data[at:end])
        entries = {entry.key: entry.value for entry in tensor.external_data}
        external.append(ExternalTensor(tensor.name, entries, _num_bytes(tensor)))
    elif raw_bytes is not None:
        tensor = onnx.TensorProto.FromString(_without(data, at, end, _RAW_DATA))
        if _num_bytes(tensor) != raw_bytes:
            known = tensor.data_type in onnx.TensorProto.DataType.values()
            dtype = onnx.TensorProto.DataType.Name(tensor.data_type) if known else tensor.data_type
            raise _DamagedError(
                f"tensor '{tensor.name[:200]}' is {dtype}{list(tensor.dims)[:20]}, but has"
                f" {raw_bytes} bytes"
            )
    return external


def _check_packed(data: mmap.mmap, begin: int, end: int, held: str) -> None:
    """Weights may be packed numbers, megabytes of them: they are checked without being decoded."""
    if held == _VARINTS:
        # The last byte ends a number, and none is longer than ten bytes.
        whole = begin == end or data[end - 1] < 0x80
        whole &= _TOO_LONG_VARINT.search(data, begin, end) is None
    else:
        whole = (end - begin) % _FIXED_SIZES[held] == 0
    if not whole:
        raise _DamagedError(f"the numbers from byte {begin} to byte {end} are cut off")


def _num_bytes(tensor: onnx.TensorProto) -> int | None:
    """Return the bytes of a tensor by shape and dtype; None where no data can have these."""
    try:
        bits = int(ir.DataType(tensor.data_type).itemsize * 8)
    except (ValueError, TypeError, KeyError):  # unknown; text, whose elements are of any length
        return None
    if any(size < 0 for size in tensor.dims):
        return None
    # Rounded up: int4 packs two numbers into a byte.
    elements: int = math.prod(tensor.dims)
    return -(-elements * bits // 8)
