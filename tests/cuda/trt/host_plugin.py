"""A plugin of the library, driven as TensorRT would, through harness.cc.

Imports nothing of moh-deploy: a machine with a GPU may have torch and numpy only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BUILD, RUNTIME = 0, 1  # TensorRTPhase
LINEAR, CHW32 = 0, 5  # TensorFormat
# DataType
TYPES = {"float32": 0, "float16": 1, "int8": 2, "int32": 3, "bool": 4, "bfloat16": 7, "int64": 8}
# PluginFieldType, of those that TensorRT's parser or a program makes
FIELD_TYPES = {"float16": 0, "float32": 1, "float64": 2, "int32": 5, "text": 6, "int64": 10}

FieldData = int | float | str | bytes | np.ndarray
"""A str gets a zero at its end, as the parser's texts have; bytes do not."""


class Dims(ctypes.Structure):
    _fields_ = (("rank", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8))


class Field(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class Fields(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("fields", ctypes.POINTER(Field)))


class TensorDesc(ctypes.Structure):
    _fields_ = (
        ("dims", Dims),
        ("type", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


class RangeDesc(ctypes.Structure):
    _fields_ = (("desc", TensorDesc), ("min", Dims), ("max", Dims), ("opt", Dims))


@dataclass(frozen=True)
class Tensor:
    """An input or output as TensorRT describes it: dtype, and shapes from min to max."""

    dtype: str
    opt: tuple[int, ...]
    min: tuple[int, ...] | None = None
    max: tuple[int, ...] | None = None
    format: int = LINEAR

    def desc(self) -> TensorDesc:
        return TensorDesc(_dims(self.opt), TYPES[self.dtype], self.format, 1.0)

    def range_desc(self) -> RangeDesc:
        ends = [_dims(self.min or self.opt), _dims(self.max or self.opt)]
        return RangeDesc(self.desc(), *ends, _dims(self.opt))


def _dims(shape: Sequence[int]) -> Dims:
    return Dims(len(shape), (ctypes.c_int64 * 8)(*shape))


class Harness:
    """A plugin library, loaded into this process."""

    def __init__(self, harness: Path, library: Path) -> None:
        self._c = ctypes.CDLL(str(harness))
        for name in ("take_log", "describe", "kind", "name", "timing_id"):
            self.call(name).restype = ctypes.c_char_p
        for name in ("open", "create", "clone", "attach"):
            self.call(name).restype = ctypes.c_void_p
        self.call("workspace").restype = ctypes.c_uint64
        self.call("serialize").restype = ctypes.POINTER(Fields)
        self._check_structs()
        self.log()  # The process has one log: other modules' messages may be in it.
        self._library = ctypes.c_void_p(self.call("open")(str(library).encode()))
        assert self._library, self.log()

    def call(self, name: str) -> ctypes._CFuncPtr:
        return getattr(self._c, f"harness_{name}")

    def log(self) -> str:
        """Return what was logged since the last call, one line a message, `E ` before an error."""
        return self.call("take_log")().decode()

    def describe(self) -> list[list[str]]:
        """Return name, version, namespace and field names of each creator."""
        return [self._of_creator("describe", i).split() for i in range(self._count())]

    def kinds(self) -> list[str]:
        """Return the interface of each creator."""
        return [self._of_creator("kind", i) for i in range(self._count())]

    def _count(self) -> int:
        return self.call("count")(self._library)

    def _of_creator(self, name: str, index: int) -> str:
        return self.call(name)(self._library, index).decode()

    def create(
        self,
        op: str,
        fields: Mapping[str, FieldData],
        *,
        phase: int = BUILD,
        layer: str = "layer",
        types: Mapping[str, str] | None = None,
    ) -> Plugin | None:
        """Create a plugin; None if it is refused.

        Args:
            types: TensorRT types of fields, where they are not those of ONNX's parser.
        """
        made = [_field(name, value, (types or {}).get(name)) for name, value in fields.items()]
        array = (Field * len(made))(*[field for field, _ in made])
        names = (op.encode(), layer.encode())
        pointer = self.call("create")(self._library, *names, array, len(made), phase)
        return Plugin(self, op, pointer) if pointer else None

    def _check_structs(self) -> None:
        sizes = (ctypes.c_uint64 * 3)()
        self.call("struct_sizes")(sizes)
        assert list(sizes) == [ctypes.sizeof(t) for t in (Field, TensorDesc, RangeDesc)]


def _field(name: str, value: FieldData, kind: str | None) -> tuple[Field, object]:
    """Return a field as the parser makes it, and what owns its data."""
    if isinstance(value, str | bytes):
        text = np.frombuffer(value if isinstance(value, bytes) else value.encode() + b"\0", "u1")
        return _field_of(name, text, "text"), text
    array = np.asarray(value, kind or ("int32" if isinstance(value, int) else "float32"))
    return _field_of(name, array, array.dtype.name), array


def _field_of(name: str, data: np.ndarray, kind: str) -> Field:
    field = Field(name.encode(), data.ctypes.data, FIELD_TYPES[kind], data.size)
    field.owner = data
    return field


class Plugin:
    """An IPluginV3."""

    def __init__(self, harness: Harness, op: str, pointer: int) -> None:
        self._harness = harness
        self.op = op
        self._pointer = ctypes.c_void_p(pointer)

    def __del__(self) -> None:
        self._call("destroy")

    def _call(self, name: str, *arguments: object) -> int:
        return self._harness.call(name)(self._pointer, *arguments)

    @property
    def name(self) -> str:
        return self._call("name").decode()

    @property
    def timing_id(self) -> str:
        return self._call("timing_id").decode()

    def clone(self) -> Plugin:
        return Plugin(self._harness, self.op, self._call("clone"))

    def attach(self) -> Plugin:
        return Plugin(self._harness, self.op, self._call("attach"))

    def output_type(self, types: Sequence[str]) -> str | None:
        inputs = (ctypes.c_int32 * len(types))(*[TYPES[t] for t in types])
        output = ctypes.c_int32(-1)
        status = self._call("output_type", inputs, len(types), ctypes.byref(output))
        names = {number: name for name, number in TYPES.items()}
        return None if status else names[output.value]

    def output_shape(
        self, shapes: Sequence[tuple[int, ...]], *, known: Sequence[Sequence[bool]] | None = None
    ) -> tuple[int, ...] | None:
        """Return the output's shape; `known` says which sizes the plugin may look at."""
        flags = np.ones((len(shapes), 8), np.uint8)
        for i, row in enumerate(known or ()):
            flags[i, : len(row)] = row
        dims = (Dims * len(shapes))(*map(_dims, shapes))
        output = Dims()
        pointer = flags.ctypes.data_as(ctypes.c_void_p)
        status = self._call("output_shape", dims, pointer, len(shapes), ctypes.byref(output))
        return None if status else tuple(output.sizes[: output.rank])

    def supports(self, position: int, tensors: Sequence[Tensor]) -> bool:
        """Ask for one tensor of all, of which the last one is the output."""
        return self._call("supports", position, _ranges(tensors), len(tensors) - 1) == 1

    def configure(self, tensors: Sequence[Tensor]) -> bool:
        return self._call("configure", _ranges(tensors), len(tensors) - 1) == 0

    def workspace_bytes(self, tensors: Sequence[Tensor]) -> int:
        return self._call("workspace", _ranges(tensors), len(tensors) - 1)

    def tactics(self) -> list[int]:
        tactics = (ctypes.c_int32 * 8)()
        count = self._call("tactics", tactics)
        return list(tactics)[:count]

    def set_tactic(self, tactic: int) -> bool:
        return self._call("set_tactic", tactic) == 0

    def on_shape_change(self, tensors: Sequence[Tensor]) -> bool:
        return self._call("on_shape_change", _descs(tensors), len(tensors) - 1) == 0

    def enqueue(
        self, inputs: Sequence[np.ndarray], output: np.ndarray, workspace: np.ndarray | None = None
    ) -> bool:
        tensors = [Tensor(a.dtype.name, a.shape) for a in (*inputs, output)]
        memory = None if workspace is None else workspace.ctypes.data
        addresses = [a.ctypes.data for a in inputs]
        return self.enqueue_at(tensors, addresses, output.ctypes.data, memory)

    def enqueue_at(
        self,
        tensors: Sequence[Tensor],
        inputs: Sequence[int | None],
        output: int | None,
        workspace: int | None,
    ) -> bool:
        """Enqueue to the default stream, with tensors at these addresses; the output comes last."""
        pointers = (ctypes.c_void_p * len(inputs))(*inputs)
        arguments = (pointers, ctypes.c_void_p(output), ctypes.c_void_p(workspace))
        return self._call("enqueue", _descs(tensors), len(inputs), *arguments) == 0

    def serialize(self) -> dict[str, int | float]:
        """Return the fields that an engine keeps."""
        collection = self._call("serialize").contents
        return {f.name.decode(): _number(f) for f in collection.fields[: collection.count]}


def _number(field: Field) -> int | float:
    assert field.length == 1
    c_type = {5: ctypes.c_int32, 1: ctypes.c_float}[field.type]
    return c_type.from_address(field.data).value


def _descs(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (TensorDesc * len(tensors))(*[t.desc() for t in tensors])


def _ranges(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (RangeDesc * len(tensors))(*[t.range_desc() for t in tensors])
