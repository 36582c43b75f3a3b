"""Write an ONNX model with its weights inside, without ever holding the file in memory.

The protobuf library builds a second copy of all weights, and a third one to write it. Here each
weight goes from where it is straight to the file.

Source: the Protocol Buffers encoding specification, length-delimited fields; onnx.proto for the
numbers of the fields.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

_LENGTH_DELIMITED = 2
_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER

# Smaller weights gain nothing from being written apart.
_LARGE_BYTES = 1 << 16


def save_with_weights(model: ir.Model, path: Path) -> None:
    """Write a model and its weights to one file.

    Args:
        model: Its large weights are taken out while the rest is encoded, and put back.

    Raises:
        OSError: The file cannot be written.
    """
    # ModelProto in its order of fields: all but the graph, then the graph with its large weights
    # last.
    initializers = model.graph.initializers
    weights = {
        name: value
        for name, value in initializers.items()
        # Types of less than a byte are packed in ways of their own.
        if (tensor := value.const_value) is not None
        and tensor.dtype.itemsize >= 1
        and tensor.nbytes >= _LARGE_BYTES
    }
    for name in weights:
        initializers.pop(name)
    # The model is the caller's: it gets its weights back whatever happens.
    try:
        proto = ir.to_proto(model)
    finally:
        initializers.update(weights)
    # Repeated fields may come in parts: initializers behind the encoded graph are appended to it.
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    entries: list[tuple[bytes, ir.TensorProtocol]] = []
    for value in weights.values():
        tensor = value.const_value
        assert tensor is not None
        # Without raw_data, whose header is written by hand so that the bytes can follow.
        described = onnx.TensorProto(
            name=value.name, dims=tensor.shape.numpy(), data_type=tensor.dtype.value
        ).SerializeToString() + _header(_RAW_DATA, tensor.nbytes)
        # The length of an entry counts its description and its data.
        size = len(described) + tensor.nbytes
        entries.append((_header(_INITIALIZER, size) + described, tensor))
    size = len(graph) + sum(len(prefix) + tensor.nbytes for prefix, tensor in entries)
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        file.write(_header(_GRAPH, size))
        file.write(graph)
        for prefix, tensor in entries:
            file.write(prefix)
            file.write(tensor.tobytes())


def _header(field: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    # A tag is the number of the field and, in three bits, how it is encoded.
    return bytes((*_varint(field << 3 | _LENGTH_DELIMITED), *_varint(length)))


def _varint(number: int) -> Iterator[int]:
    # Seven bits a byte, the lowest first; the highest bit says that more follow.
    while number > 0x7F:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number
