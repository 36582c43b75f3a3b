"""The requests, good and bad, that `serve` and Triton have to answer alike, made for any model.

Each row of the tables changes a request that is right, and has the status that it gets. Where the
servers differ it has a `Difference`: docs/serve.md lists these, and no others.
"""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from moh_deploy.package import TensorInfo
from moh_deploy.serving.http.protocol import HEADER_LENGTH
from moh_deploy.serving.http.queue import HttpLimits
from moh_deploy.serving.http.tensors import DATATYPES, raw_bytes
from moh_deploy.system.npz import Array

OUTPUT = "output"
"""An output that each model of the tests has."""

Tensor: TypeAlias = dict[str, Any]
"""An input in a request: its JSON, and its array as `values`."""


@dataclass
class Draft:
    """A request that is right, until a row of a table changes it."""

    tensors: list[Tensor]  # the inputs
    is_binary: bool  # values are sent as bytes behind the JSON
    # What stands beside the inputs: `id`, `outputs`, `parameters`.
    fields: dict[str, Any] = field(default_factory=dict)
    tail: bytes = b""  # bytes behind all values
    body: bytes | None = None  # the whole body, in place of one made of the above
    headers: dict[str, str] = field(default_factory=dict)  # of HTTP
    method: str = "POST"  # of HTTP
    path: str = "models/m/infer"  # behind `/v2/`

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


MAX_BATCH = 8

Form: TypeAlias = Literal["JSON", "bytes"]
FORMS: tuple[Form, ...] = ("JSON", "bytes")


@dataclass(frozen=True)
class Difference:
    """A kind of request that the servers answer with different statuses."""

    kind: str  # as docs/serve.md has it
    serve: int  # status of `serve`
    triton: int | None  # status of Triton; None where it is not asked, because it would end


UNREADABLE = Difference("JSON that Triton cannot parse", 400, 500)
CLASSES = Difference("`classification` of an output", 400, 200)
SHARED = Difference("an output in shared memory that is not registered", 400, 404)
ZIPPED = Difference("a compressed body", 415, 200)
LARGE_JSON = Difference("more JSON than `--max-json`", 413, 200)
NO_NUMBER = Difference("NaN asked for as JSON", 406, 200)
KEY_TWICE = Difference("a key twice in an object", 400, 200)
INFINITE = Difference("NaN, or a number beyond the range of FP32, in JSON", 400, 200)
HUGE = Difference("a size of 2^31 or more", 400, None)


Row: TypeAlias = tuple[int | Difference, Change]

REQUEST: Mapping[str, Row] = {
    "nothing changed": (200, sent()),
    "a batch of 1": (200, batch(1)),
    "the largest batch": (200, batch(MAX_BATCH)),
    "a batch beyond the largest": (400, batch(MAX_BATCH + 1)),
    "an empty batch": (400, batch(0)),
    "no inputs": (400, lambda draft, _: draft.tensors.clear()),
    "an id": (200, fields(id="a b/ü")),
    "an empty id": (200, fields(id="")),
    "a number as id": (UNREADABLE, fields(id=7)),
    "null as id": (UNREADABLE, fields(id=None)),
    "an output": (200, output()),
    "an output as bytes": (200, output(binary_data=True)),
    "an output as JSON": (200, output(binary_data=False)),
    "all outputs as bytes": (200, parameters(binary_data_output=True)),
    "no outputs": (200, fields(outputs=[])),
    "an output twice": (200, fields(outputs=[{"name": OUTPUT}] * 2)),
    "an unknown output": (400, fields(outputs=[{"name": "outptu"}])),
    "an output without a name": (UNREADABLE, fields(outputs=[{}])),
    "a text as output": (UNREADABLE, fields(outputs=[OUTPUT])),
    "an object as outputs": (UNREADABLE, fields(outputs={"name": OUTPUT})),
    "a text as binary_data": (UNREADABLE, output(binary_data="yes")),
    "a text as binary_data_output": (UNREADABLE, parameters(binary_data_output="yes")),
    "classes of an output": (CLASSES, output(classification=2)),
    "an output in shared memory": (
        SHARED,
        output(shared_memory_region="r", shared_memory_byte_size=8),
    ),
    "an unknown parameter of an output": (200, output(colour="red")),
    "unknown parameters": (200, parameters(colour="red", number=3, share=0.5, flag=True)),
    "an object as parameter": (400, parameters(colour={})),
    "null as parameter": (400, parameters(colour=None)),
    "a list as parameters": (UNREADABLE, fields(parameters=[])),
    "a timeout": (200, parameters(timeout=60_000_000)),
    "a text as timeout": (UNREADABLE, parameters(timeout="soon")),
    "a negative timeout": (UNREADABLE, parameters(timeout=-1)),
    "a sequence": (200, parameters(sequence_id=3, sequence_start=True)),
    "a priority": (200, parameters(priority=1)),
    "an unknown field": (200, fields(colour="red")),
    "bytes behind all values": (400, sent(tail=b"12345678")),
    "a header beyond the body": (400, header("9999999")),
    "a header that cuts the JSON": (UNREADABLE, header("9")),
    "0 as header": (400, header("0")),
    "a negative header": (400, header("-5")),
    "a text as header": (400, header("many")),
    "another content type": (200, header("text/plain", "content-type")),
    "a key twice": (KEY_TWICE, key_twice),
    "a compressed body": (ZIPPED, zipped),
    "its version": (200, sent(path="models/m/versions/1/infer")),
    "another version": (404, sent(path="models/m/versions/7/infer")),
    "a text as version": (404, sent(path="models/m/versions/x/infer")),
    "another model": (404, sent(path="models/n/infer")),
    "another route": (404, sent(path="models/m/guess")),
    "GET": (405, sent(method="GET")),
    "PUT": (405, sent(method="PUT")),
    "much JSON": (LARGE_JSON, fields(colour=" " * HttpLimits.max_json_bytes)),
}

BODY: Mapping[str, Row] = {
    "nothing": (400, sent(body=b"")),
    "no JSON": (UNREADABLE, sent(body=b"x=1")),
    "a list": (UNREADABLE, sent(body=b"[]")),
    "null": (UNREADABLE, sent(body=b"null")),
    "no inputs in it": (UNREADABLE, sent(body=b"{}")),
    "inputs that are an object": (UNREADABLE, sent(body=b'{"inputs": {}}')),
    "an input that is a text": (400, sent(body=b'{"inputs": ["x"]}')),
    "bytes that are no UTF-8": (400, sent(body=b'{"inputs": [], "id": "\xff"}')),
    "JSON that is cut off": (UNREADABLE, sent(body=b'{"inputs": [')),
    "lists in lists": (UNREADABLE, sent(body=b"[" * 5000)),
    "server metadata": (200, sent(body=b"", method="GET", path="")),
    "is it alive": (200, sent(body=b"", method="GET", path="health/live")),
    "is it ready": (200, sent(body=b"", method="GET", path="health/ready")),
    "metadata": (200, sent(body=b"", method="GET", path="models/m")),
    "is the model ready": (200, sent(body=b"", method="GET", path="models/m/ready")),
    "metadata of another model": (404, sent(body=b"", method="GET", path="models/n")),
    "a guess": (404, sent(body=b"", method="GET", path="guess")),
}

INPUT: Mapping[str, Row] = {
    "is missing": (400, lambda draft, given: draft.tensors.remove(given)),
    "is there twice": (400, lambda draft, given: draft.tensors.append(dict(given))),
    "comes last": (200, lambda draft, given: draft.tensors.sort(key=lambda item: item is given)),
    "is misspelt": (400, lambda _, given: given.update(name=given["name"] + "s")),
    "has no name": (UNREADABLE, without("name")),
    "has a number as name": (UNREADABLE, tensor(name=1)),
    "has no datatype": (UNREADABLE, without("datatype")),
    "has an unknown datatype": (400, tensor(datatype="FLOAT")),
    "has no shape": (UNREADABLE, without("shape")),
    "has a number as shape": (UNREADABLE, tensor(shape=2)),
    "has a text in its shape": (UNREADABLE, shape(lambda sizes: [*sizes[:-1], "2"])),
    "has a negative size": (UNREADABLE, shape(lambda sizes: [-1, *sizes[1:]])),
    "has a fractional size": (UNREADABLE, shape(lambda sizes: [2.5, *sizes[1:]])),
    "has an axis too many": (400, shape(lambda sizes: [*sizes, 1])),
    "has no axes": (400, shape(lambda sizes: [])),
    "has its axes turned": (400, shape(lambda sizes: sizes[::-1])),
    "has another batch": (400, size(0, lambda before: before + 1)),
    "has a longer last axis": (400, size(-1, lambda before: before + 1)),
    "has an unknown parameter": (200, tensor(parameters={"colour": "red"})),
    "has an object as parameter": (200, tensor(parameters={"colour": {}})),
    "is in shared memory": (
        400,
        tensor(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 8}),
    ),
}

INPUT_IN_JSON: Mapping[str, Row] = {
    "has another datatype": (
        400,
        lambda _, given: given.update(datatype="INT32", data=[0] * given["values"].size),
    ),
    "comes as nested lists": (
        200,
        lambda _, given: given.update(data=given["values"].reshape(given["shape"]).tolist()),
    ),
    "has too few values": (UNREADABLE, values(lambda array: array[:1])),
    "has too many values": (UNREADABLE, values(lambda array: array.repeat(2))),
    "has no data": (UNREADABLE, tensor(data=None)),
    "has an object as data": (UNREADABLE, tensor(data={})),
    "has a text in data": (UNREADABLE, first("1")),
    "has null in data": (UNREADABLE, first(None)),
    "has a number beyond all ranges": (UNREADABLE, first(10**400)),
    "has a huge size": (HUGE, shape(lambda sizes: [2**40, *sizes[1:]])),
}

INPUT_IN_BYTES: Mapping[str, Row] = {
    "has another datatype": (400, tensor(datatype="INT16")),
    "has too few values": (400, values(lambda array: array[:1])),
    "has too many values": (400, values(lambda array: array.repeat(2))),
    "has too small a size in bytes": (400, tensor(parameters={"binary_data_size": 1})),
    "has a negative size in bytes": (UNREADABLE, tensor(parameters={"binary_data_size": -8})),
    "has a text as size in bytes": (UNREADABLE, tensor(parameters={"binary_data_size": "8"})),
    "has data, too": (400, lambda _, given: given.update(data=given["values"].ravel().tolist())),
    "has a huge size": (HUGE, shape(lambda sizes: [2**40, *sizes[1:]])),
}

JSON_OF_KIND: Mapping[str, Mapping[str, Row]] = {
    "i": {
        "has a fraction": (UNREADABLE, first(1.5)),
        "has true as number": (UNREADABLE, first(True)),
        "has a number beyond its range": (UNREADABLE, first(2**63)),
    },
    "f": {
        "has a whole number": (200, first(1)),
        "has true as number": (UNREADABLE, first(True)),
        "has a number beyond its range": (INFINITE, first(1e39)),
        "has NaN as number": (INFINITE, first(np.nan)),
    },
    "b": {"has 1 as true": (UNREADABLE, first(1))},
}


@dataclass(frozen=True)
class Subject:
    """A model that is asked."""

    specs: tuple[TensorInfo, ...]  # its inputs
    inputs: Mapping[str, Array]  # a batch of 2 that it answers
    rows: Mapping[str, int]  # input to the rows of the table that its values are looked up in
    longest: Mapping[str, int]  # dynamic dimension to the largest size of it

    def draft(self, *, is_binary: bool) -> Draft:
        """Return a request that is right, for both servers."""
        tensors = [
            {
                "name": name,
                "datatype": DATATYPES[array.dtype.name],
                # Triton takes a number for each sample as [batch, 1] alone.
                "shape": [*array.shape, 1][: max(2, array.ndim)],
                "values": array.copy(),
            }
            for name, array in self.inputs.items()
        ]
        return Draft(tensors, is_binary)

    def of_input(self, name: str, *, is_binary: bool) -> Iterator[tuple[str, Row]]:
        """Yield the rows for one of its inputs."""
        yield from INPUT.items()
        if is_binary:
            yield from INPUT_IN_BYTES.items()
            if self.inputs[name].dtype.kind == "f":
                yield "is NaN, and so is the answer", (NO_NUMBER, filled(np.nan))
        else:
            yield from INPUT_IN_JSON.items()
            yield from JSON_OF_KIND[self.inputs[name].dtype.kind].items()
        if name in self.rows:
            yield "is the last row", (200, filled(self.rows[name] - 1))
            yield "is a row too many", (400, filled(self.rows[name]))
            yield "is -1", (400, filled(-1))

    def of_dims(self) -> Iterator[tuple[str, Row]]:
        """Yield rows that change a dimension in all inputs."""
        shapes = {spec.name: spec.shape for spec in self.specs}
        for dim, longest in self.longest.items():
            yield f"'{dim}' is 1", (200, dimension(dim, 1, shapes))
            yield f"'{dim}' is the longest", (200, dimension(dim, longest, shapes))
            yield f"'{dim}' is too long", (400, dimension(dim, longest + 1, shapes))


@dataclass(frozen=True)
class Case:
    """A request, and the status that it gets."""

    name: str  # what is changed
    draft: Draft  # the request
    expected: int | Difference  # its status

    @property
    def statuses(self) -> tuple[int, int | None]:
        """The status of `serve`, and Triton's; None where Triton is not asked."""
        if isinstance(self.expected, Difference):
            return self.expected.serve, self.expected.triton
        return self.expected, self.expected


def cases(subject: Subject, form: Form) -> Iterator[Case]:
    """Yield all requests to a model with values in one form."""
    is_binary = form == "bytes"
    rows = [*REQUEST.items(), *subject.of_dims(), *(() if is_binary else BODY.items())]
    for name, (expected, change) in rows:
        draft = subject.draft(is_binary=is_binary)
        change(draft, draft.tensors[0])
        yield Case(f"{form}: {name}", draft, expected)
    for index, input_name in enumerate(subject.inputs):
        for name, (expected, change) in subject.of_input(input_name, is_binary=is_binary):
            draft = subject.draft(is_binary=is_binary)
            change(draft, draft.tensors[index])
            yield Case(f"{form}: '{input_name}' {name}", draft, expected)
