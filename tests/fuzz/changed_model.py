"""ONNX models with fields of messages changed, wherever they are."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import onnx
from hypothesis import strategies as st

_TEXTS = (
    "",
    "x",
    "y",
    "gates_0",
    "model.onnx.data",
    "/etc/passwd",
    "moh",
    "moh.dense",
    "MoHAttention",
    "If",
    "Loop",
    "Constant",
    "\0",
    "é",
    "x" * 300,
    "location",
    "moh.sizes/",
)
_NUMBERS = (0, 1, -1, 2, 7, 10, 16, 99, 2**31 - 1, -(2**31))
_LARGE = (*_NUMBERS, 2**62, 2**63 - 1, -(2**63))


class FieldChange(NamedTuple):
    """One change.

    Attributes:
        kind: What is done.
        message: Which message of the model.
        field: Which of its fields.
        value: Which of the odd values is put there.
    """

    kind: str
    message: int
    field: int
    value: int


field_changes = st.lists(
    st.builds(
        FieldChange,
        st.sampled_from(["set", "set", "set", "clear", "repeat", "remove", "nest"]),
        st.integers(0, 2**12),
        st.integers(0, 40),
        st.integers(0, 40),
    ),
    min_size=1,
    max_size=3,
)


def change_model(model: onnx.ModelProto, changes: list[FieldChange]) -> onnx.ModelProto:
    """Return a copy with all changes made."""
    changed = copy.deepcopy(model)
    for change in changes:
        messages = list(_messages(changed))
        message = messages[change.message % len(messages)]
        fields = message.DESCRIPTOR.fields
        _change(message, fields[change.field % len(fields)], change)
    return changed


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from _messages(item)


def _change(message: Any, field: Any, change: FieldChange) -> None:
    values = getattr(message, field.name)
    if change.kind == "clear":
        message.ClearField(field.name)
    elif field.is_repeated:
        if change.kind == "remove" and values:
            del values[change.value % len(values)]
        elif change.kind == "repeat" and values:
            values.append(copy.deepcopy(values[change.value % len(values)]))
        elif field.message_type is None:
            values.append(_odd(field, change.value))
        else:
            values.add()
    elif field.message_type is not None:
        values.SetInParent()
    else:
        setattr(message, field.name, _odd(field, change.value))


def _odd(field: Any, index: int) -> Any:
    if field.type == field.TYPE_STRING:
        return _TEXTS[index % len(_TEXTS)]
    if field.type == field.TYPE_BYTES:
        return _TEXTS[index % len(_TEXTS)].encode() + b"\xff"
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return (0.0, float("nan"), float("inf"), 1e30, -1.0)[index % 5]
    if field.type == field.TYPE_ENUM:
        numbers = [value.number for value in field.enum_type.values]
        return numbers[index % len(numbers)]
    if field.type == field.TYPE_UINT64:
        return abs(_LARGE[index % (len(_LARGE) - 1)])
    numbers = _LARGE if field.type == field.TYPE_INT64 else _NUMBERS
    return numbers[index % len(numbers)]
