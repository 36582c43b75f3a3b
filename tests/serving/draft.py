"""A request that is right, and the changes that a test makes in it before it is sent."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from moh_deploy.serving.http.protocol import HEADER_LENGTH
from moh_deploy.serving.http.tensors import raw_bytes
from moh_deploy.system.npz import Array

OUTPUT = "output"
"""An output that each model of the tests has."""

Tensor: TypeAlias = dict[str, Any]
"""An input in a request: its JSON, and its array as `values`."""


@dataclass
class Draft:
    """A request that is right, until a row of a table changes it.

    Attributes:
        tensors: The inputs.
        is_binary: Values are sent as bytes behind the JSON.
        fields: What stands beside the inputs: `id`, `outputs`, `parameters`.
        tail: Bytes behind all values.
        body: The whole body, in place of one made of the above.
        headers: Of HTTP.
        method: Of HTTP.
        path: Behind `/v2/`.
    """

    tensors: list[Tensor]
    is_binary: bool
    fields: dict[str, Any] = field(default_factory=dict)
    tail: bytes = b""
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    path: str = "models/m/infer"

    def content(self) -> bytes:
        """Return the body, and set the header that its form needs."""
        if self.body is not None:
            return self.body
        described, raw = [], b""
        for tensor in self.tensors:
            entry = {key: value for key, value in tensor.items() if key != "values"}
            if self.is_binary:
                own = raw_bytes(tensor["values"])
                raw += own
                size = {"binary_data_size": len(own)}
                entry["parameters"] = {**size, **entry.get("parameters", {})}
            else:
                entry.setdefault("data", tensor["values"].ravel().tolist())
            described.append(entry)
        head = json.dumps({"inputs": described, **self.fields}).encode()
        if self.is_binary or self.tail:
            self.headers.setdefault(HEADER_LENGTH, str(len(head)))
        return head + raw + self.tail


Change: TypeAlias = Callable[[Draft, Tensor], object]
"""Changes a request, or an input in it."""


def fields(**changed: object) -> Change:
    return lambda draft, _: draft.fields.update(changed)


def parameters(**given: object) -> Change:
    return fields(parameters=given)


def output(**given: object) -> Change:
    return fields(outputs=[{"name": OUTPUT, "parameters": given}])


def sent(**changed: object) -> Change:
    """Change attributes of the draft."""
    return lambda draft, _: vars(draft).update(changed)


def header(text: str, name: str = HEADER_LENGTH) -> Change:
    return lambda draft, _: draft.headers.update({name: text})


def key_twice(draft: Draft, _: Tensor) -> None:
    begin = b'{"colour": 1, "colour": 2, '
    draft.body = begin + draft.content()[1:]
    if draft.is_binary:
        draft.headers[HEADER_LENGTH] = str(int(draft.headers[HEADER_LENGTH]) + len(begin) - 1)


def zipped(draft: Draft, _: Tensor) -> None:
    draft.body = gzip.compress(draft.content())
    draft.headers["content-encoding"] = "gzip"


def tensor(**changed: object) -> Change:
    return lambda _, given: given.update(changed)


def without(key: str) -> Change:
    return lambda _, given: given.pop(key)


def shape(change: Callable[[list[int]], object]) -> Change:
    return lambda _, given: given.update(shape=change(given["shape"]))


def values(change: Callable[[Array], Array]) -> Change:
    return lambda _, given: given.update(values=change(given["values"]))


def first(value: object) -> Change:
    """Put another value into JSON in the place of the first."""
    return lambda _, given: given.update(data=[value, *given["values"].ravel().tolist()[1:]])


def filled(value: object) -> Change:
    return lambda _, given: given["values"].fill(value)


def size(axis: int, change: Callable[[int], int]) -> Change:
    """Change the size of an axis, and the values with it."""

    def changed(_: Draft, given: Tensor) -> None:
        sizes = list(given["shape"])
        sizes[axis] = change(sizes[axis])
        given.update(shape=sizes, values=np.resize(given["values"], sizes))

    return changed


def batch(samples: int) -> Change:
    """Change the number of samples in all inputs."""

    def changed(draft: Draft, _: Tensor) -> None:
        for given in draft.tensors:
            size(0, lambda _: samples)(draft, given)

    return changed


def dimension(name: str, length: int, shapes: Mapping[str, Sequence[int | str]]) -> Change:
    """Change a dynamic dimension in all inputs, which have these shapes."""

    def changed(draft: Draft, _: Tensor) -> None:
        for given in draft.tensors:
            for axis, dim in enumerate(shapes[given["name"]]):
                if dim == name:
                    size(axis, lambda _: length)(draft, given)

    return changed
