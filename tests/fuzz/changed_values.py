"""Plain values, as JSON and YAML have them, with a few changed into what makes no sense."""

import copy
import json
from typing import Any, NamedTuple

from hypothesis import strategies as st


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


ODD_TEXTS = (
    *("", " ", "x" * 300, "NaN", "Infinity", "1", "null", "\0", "\n", "\ud800", "é", "a\u202eb"),
    *("../secret", "/etc/passwd", ".", "..", "a/b", "model.onnx", "vectors.npz", "batch", "seq"),
    *("past + 1", "2*seq-1", "batch*seq", "0*seq", "9" * 50, "float32", "object", "dense", "x:y"),
    *("{", "%s", "__class__", "moh.sizes/", "gates_0", "blocks.0.attn"),
)
ODD_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        255,
        2**31,
        -(2**31),
        2**53 + 1,
        2**63 - 1,
        2**63,
        2**64,
        2**70,
    ),
    *(10**400, 0.0, -0.0, 0.5, 1.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *([], {}, [[]], [{}], {"": None}, {"a": 1}, [0] * 50, ["x"] * 20, _nested(20), _nested(120)),
    *ODD_TEXTS,
)

odd_values = st.sampled_from(ODD_VALUES) | st.integers() | st.floats() | st.text(max_size=8)


class ValueChange(NamedTuple):
    """One change.

    Attributes:
        kind: What is done.
        steps: Which entry to go to at each level.
        value: What is put there.
    """

    kind: str
    steps: tuple[int, ...]
    value: Any


value_changes = st.lists(
    st.builds(
        ValueChange,
        st.sampled_from(["replace", "replace", "replace", "remove", "add", "rename", "repeat"]),
        st.lists(st.integers(0, 40), min_size=1, max_size=6).map(tuple),
        odd_values,
    ),
    min_size=1,
    max_size=3,
)


def change_values(document: Any, changes: list[ValueChange]) -> Any:
    """Return a copy with all changes made; a way that ends early is taken as far as it goes."""
    changed = copy.deepcopy(document)
    for kind, steps, value in changes:
        holder, key = changed, None
        inner = changed
        for step in steps:
            if not isinstance(inner, (dict, list)) or not inner:
                break
            holder = inner
            key = list(inner)[step % len(inner)] if isinstance(inner, dict) else step % len(inner)
            inner = inner[key]
        if key is None:
            return value
        _change(holder, key, kind, copy.deepcopy(value))
    return changed


def _change(holder: Any, key: Any, kind: str, value: Any) -> None:
    if kind == "replace":
        holder[key] = value
    elif kind == "remove":
        del holder[key]
    elif isinstance(holder, list):
        holder.insert(key, value if kind == "add" else copy.deepcopy(holder[key]))
    elif kind == "rename":
        holder[value if isinstance(value, str) else str(value)[:50]] = holder.pop(key)
    else:
        name = value if isinstance(value, str) else "another"
        holder[name] = value if kind == "add" else copy.deepcopy(holder[key])


def json_text(value: Any) -> str:
    """Return JSON as Python writes it, numbers that JSON has not included."""
    return json.dumps(value)
