import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp

from moh_deploy.package import TensorInfo
from moh_deploy.serving.http.protocol import (
    HEADER_LENGTH,
    Body,
    InferRequest,
    RequestedOutput,
    read_answer,
    read_request,
    write_answer,
    write_request,
)
from moh_deploy.serving.http.queue import Refusal
from moh_deploy.serving.http.tensors import DATATYPES
from moh_deploy.system.npz import BFLOAT16, Array

X = TensorInfo("x", "float32", ("batch", 2))
IDS = TensorInfo("ids", "int64", ("batch",))
Y = TensorInfo("y", "float32", ("batch", 2))


def read(body: Body, *inputs: TensorInfo, outputs: tuple[TensorInfo, ...] = (Y,)) -> InferRequest:
    json_bytes = None if body.json_bytes is None else str(body.json_bytes)
    return read_request(body.content, json_bytes, inputs=inputs or (X, IDS), outputs=outputs)


def read_json(content: object, *inputs: TensorInfo) -> InferRequest:
    return read(Body(json.dumps(content).encode(), None), *inputs)


@st.composite
def arrays(draw: st.DrawFn, *, is_finite: bool = False) -> Array:
    name = draw(st.sampled_from(sorted(DATATYPES)))
    shape = draw(stnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    if name == "bool":
        return draw(stnp.arrays(np.bool_, shape))
    dtype = BFLOAT16 if name == "bfloat16" else np.dtype(name)
    raw = draw(stnp.arrays(f"u{dtype.itemsize}", shape))
    array: Array = raw.view(dtype)
    if is_finite and array.dtype.kind not in "iub":
        wide = array.astype(np.float64)
        array = np.where(np.isfinite(wide), array, np.zeros((), dtype))
    return array


def same_bits(one: Array, other: Array) -> bool:
    is_same = one.dtype.name == other.dtype.name and one.shape == other.shape
    return is_same and one.tobytes() == other.tobytes()


@given(st.dictionaries(st.text(), arrays(), max_size=3), st.none() | st.text())
def test_raw_tensors_arrive_bit_for_bit(tensors: dict[str, Array], id: str | None):
    infos = [TensorInfo(name, value.dtype.name, value.shape) for name, value in tensors.items()]
    got = read(write_request(tensors, id=id), *infos, outputs=())
    assert got.id == (id or None)
    assert list(got.inputs) == list(tensors)
    assert all(same_bits(got.inputs[name], value) for name, value in tensors.items())


@given(st.dictionaries(st.text(), arrays(is_finite=True), max_size=3))
def test_numbers_in_json_arrive_bit_for_bit(tensors: dict[str, Array]):
    with_json = {
        name: value
        for name, value in tensors.items()
        if value.dtype.itemsize != 2 or value.dtype.kind in "iu"
    }
    infos = [TensorInfo(name, value.dtype.name, value.shape) for name, value in with_json.items()]
    got = read(write_request(with_json, is_binary=False), *infos, outputs=())
    assert all(same_bits(got.inputs[name], value) for name, value in with_json.items())


@given(arrays(), st.none() | st.text())
def test_answer_is_what_was_computed(array: Array, id: str | None):
    request = InferRequest({}, (RequestedOutput("y", is_binary=True),), id)
    body = write_answer(request, {"y": array, "other": array}, model="m", version="7")
    got = read_answer(body.content, str(body.json_bytes))
    assert list(got) == ["y"]
    assert same_bits(got["y"], array)
    head = json.loads(body.content[: body.json_bytes])
    assert (head["model_name"], head["model_version"], head.get("id")) == ("m", "7", id)


@given(arrays(is_finite=True))
def test_answer_in_json_is_what_was_computed(array: Array):
    request = InferRequest({}, (RequestedOutput("y", is_binary=False),))
    body = write_answer(request, {"y": array}, model="m", version="7")
    if array.dtype.name not in ("float16", "bfloat16"):  # which no request can ask for
        assert same_bits(read_answer(body.content, None)["y"], array)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_answer_that_json_has_no_numbers_for_is_said_to_be_one(value: float):
    request = InferRequest({}, (RequestedOutput("y", is_binary=False),))
    with pytest.raises(Refusal, match="'y' holds NaN or infinities") as caught:
        write_answer(request, {"y": np.array([1, value])}, model="m", version="7")
    assert caught.value.status == 406


def test_values_may_be_nested_as_the_shape_is():
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2]}
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        got = read_json({"inputs": [{**tensor, "data": data}]})
        assert got.inputs["x"].tolist() == [[1, 2], [3, 4]]


def test_raw_values_follow_in_the_order_of_the_inputs_and_beside_json():
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    head = {
        "inputs": [
            {"name": "ids", "datatype": "INT64", "shape": [1], "data": [5]},
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [2, 2],
                "parameters": {"binary_data_size": 16},
            },
        ]
    }
    text = json.dumps(head).encode()
    got = read(Body(text + x.tobytes(), len(text)))
    assert got.inputs["ids"].tolist() == [5]
    assert got.inputs["x"].tolist() == x.tolist()


AS_RAW: dict[str, object] = {"binary_data_output": True}


@pytest.mark.parametrize(
    ("request_parameters", "outputs", "wanted"),
    [
        ({}, None, [("y", False), ("z", False)]),
        (AS_RAW, None, [("y", True), ("z", True)]),
        (AS_RAW, [], [("y", True), ("z", True)]),
        ({}, [{"name": "z"}], [("z", False)]),
        (
            {},
            [{"name": "z", "parameters": {"binary_data": True}}, {"name": "y"}],
            [("z", True), ("y", False)],
        ),
        (AS_RAW, [{"name": "y", "parameters": {"binary_data": False}}], [("y", False)]),
    ],
)
def test_outputs_are_those_that_are_asked_for(
    request_parameters: object, outputs: object, wanted: list[tuple[str, bool]]
):
    content = {"inputs": [], "parameters": request_parameters}
    if outputs is not None:
        content["outputs"] = outputs
    body = Body(json.dumps(content).encode(), None)
    got = read(body, outputs=(Y, replace(Y, name="z")))
    assert [(output.name, output.is_binary) for output in got.outputs] == wanted


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_number_for_each_sample_may_come_in_a_row_of_its_own(shape: tuple[int, ...]):
    sent = {"ids": np.arange(3).reshape(shape)}
    content = write_request(sent, is_binary=False).content
    got = read_request(content, None, inputs=(X, IDS), outputs=(Y,), scalars={"ids": 1})
    assert got.inputs["ids"].tolist() == [0, 1, 2]


def test_timeout_is_in_microseconds():
    assert read_json({"inputs": [], "parameters": {"timeout": 2500}}).timeout_s == 0.0025


GOOD = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
REFUSED = {
    "empty": (b"", "is not valid JSON"),
    "cut off": (b'{"inputs": [', "is not valid JSON"),
    "not UTF-8": (b'{"inputs": "\xff"}', "is not valid JSON"),
    "deep": (b"[" * 100_000, "nested deeper"),
    "key twice": (b'{"inputs": [], "inputs": []}', "'inputs' is there twice"),
    "long number": (b'{"inputs": ' + b"1" * 5000 + b"}", "is not valid JSON"),
    "no object": ([], "the request is no JSON object"),
    "no inputs": ({}, "inputs is missing or no list"),
    "inputs an object": ({"inputs": {}}, "inputs is missing or no list"),
    "input a number": ({"inputs": [1]}, "one of inputs is no JSON object"),
    "id a number": ({"inputs": [], "id": 1}, "id of the request is no text"),
    "parameters a list": ({"inputs": [], "parameters": []}, "parameters of the request is no"),
    "null as id": ({"inputs": [], "id": None}, "id of the request is no text"),
    "parameter an object": ({"inputs": [], "parameters": {"a": {}}}, "neither a number nor a text"),
    "timeout": ({"inputs": [], "parameters": {"timeout": "1s"}}, "no number of microseconds"),
    "long timeout": (
        b'{"inputs": [], "parameters": {"timeout": 1' + b"0" * 400 + b"}}",
        "no number of microseconds",
    ),
    "flag": ({"inputs": [], "parameters": {"binary_data_output": 1}}, "neither true nor false"),
    "twice": ({"inputs": [GOOD, GOOD]}, "'x' is there twice"),
    "other output": (
        {"inputs": [], "outputs": [{"name": "Y"}]},
        "there is no output 'Y': the model has y",
    ),
    "classes": (
        {"inputs": [], "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
        "the parameter classification is not supported",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_request_is_refused(content: object, message: str):
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(Refusal, match=message) as caught:
        read(Body(raw, None))
    assert caught.value.status == 400


TENSORS: dict[str, tuple[dict[str, object], str]] = {
    "no name": ({"name": None}, "name of one of inputs is no text"),
    "other name": (
        {"name": "idx"},
        "there is no input 'idx': the model has x, ids. Did you mean 'ids'",
    ),
    "other dtype": ({"datatype": "FP64"}, "input 'x' has datatype FP64, expected FP32"),
    "no dtype": ({"datatype": "float32"}, "input 'x' has datatype float32, expected FP32"),
    "no shape": ({"shape": None}, "'x': shape is missing"),
    "negative": ({"shape": [-1, 2]}, "shape has the size -1, expected 0 to"),
    "huge": ({"shape": [2**62, 0], "data": []}, "shape has the size 4611686018427387904"),
    "wraps round": ({"shape": [2**16, 2**16, 2**16, 2**16]}, "but shape says"),
    "a fraction": ({"shape": [1.0, 2]}, "shape has the size 1.0"),
    "true as a size": ({"shape": [True, 2]}, "shape has the size true"),
    "many axes": ({"shape": [1] * 33}, "no list of up to 32 sizes"),
    "too few": ({"data": [1]}, r"data is of shape \[1\], but shape says \[1, 2\]"),
    "too many": ({"data": [1, 2, 3]}, r"data is of shape \[3\]"),
    "other nesting": ({"data": [[1], [2]]}, r"data is of shape \[2, 1\]"),
    "ragged": ({"data": [[1, 2], [3]]}, "lists in data are of different lengths"),
    "half nested": ({"data": [[1], 2]}, r"data has \[1\], which is no FP32"),
    "text": ({"data": ["1", 2]}, 'data has "1", which is no FP32'),
    "null": ({"data": [None, 2]}, "data has null, which is no FP32"),
    "true as a number": ({"data": [True, 2]}, "data has true, which is no FP32"),
    "out of range": ({"data": [1e39, 2]}, "not finite, or out of the range of FP32"),
    "infinite": ({"data": [1e400, 2]}, "not finite, or out of the range of FP32"),
    "no data": ({"data": None}, "data is missing or no list"),
    "both": ({"parameters": {"binary_data_size": 8}}, "both data and binary_data_size"),
    "shared memory": (
        {"parameters": {"shared_memory_region": "r"}},
        "shared memory is not supported",
    ),
}


@pytest.mark.parametrize(("changes", "message"), TENSORS.values(), ids=TENSORS)
def test_tensor_that_does_not_fit_is_refused(changes: dict[str, object], message: str):
    with pytest.raises(Refusal, match=message) as caught:
        read_json({"inputs": [{**GOOD, **changes}]})
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1.5], "data has 1.5, which is no INT64"),
        ([2**63], "out of the range of INT64"),
        ([1e2], "data has 100.0, which is no INT64"),
    ],
)
def test_whole_numbers_stay_whole(data: list[object], message: str):
    with pytest.raises(Refusal, match=message):
        read_json({"inputs": [{"name": "ids", "datatype": "INT64", "shape": [1], "data": data}]})


@pytest.mark.parametrize(
    ("shape", "size", "raw", "json_bytes", "message"),
    [
        ([1, 2], 8, b"1234567", None, "'x' is cut short: 7 of 8 bytes are there"),
        ([1, 2], 4, b"1234", None, r"binary_data_size is 4, but float32\[1, 2\] has 8 bytes"),
        ([1, 2], 8, b"123456789", None, "has 9 bytes behind its JSON, the tensors in it have 8"),
        ([1, 2], -8, b"", None, "binary_data_size is no number of bytes"),
        ([1, 2], True, b"1", None, "binary_data_size is no number of bytes"),
        ([2**31 - 1] * 4, 8, b"12345678", None, "binary_data_size is 8, but"),
        ([1, 2], 8, b"12345678", "-1", f"{HEADER_LENGTH} is '-1', expected a number of bytes"),
        ([1, 2], 8, b"12345678", "٣", "expected a number of bytes"),
        ([1, 2], 8, b"12345678", "9" * 30, "expected a number of bytes"),
        ([1, 2], 8, b"12345678", "100000", "is 100000, but the body has"),
        ([1, 2], 8, b"12345678", "10", "is not valid JSON"),
    ],
)  # fmt: skip
def test_raw_values_that_do_not_fit_are_refused(
    shape: list[int], size: object, raw: bytes, json_bytes: str | None, message: str
):
    tensor = {"name": "x", "datatype": "FP32", "shape": shape}
    head = {"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}
    text = json.dumps(head).encode()
    with pytest.raises(Refusal, match=message):
        read_request(text + raw, json_bytes or str(len(text)), inputs=(X,), outputs=(Y,))


def test_bytes_that_are_no_truth_values_are_refused():
    info = TensorInfo("mask", "bool", (2,))
    body = write_request({"mask": np.array([0, 2], np.uint8).view(np.bool_)})
    with pytest.raises(Refusal, match="a byte of BOOL is neither 0 nor 1"):
        read(body, info)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["FP16", "BF16"])
def test_half_precision_has_no_json(dtype: type):
    info = TensorInfo("half", np.dtype(dtype).name, (1,))
    with pytest.raises(Refusal, match="has no form in JSON; send it as binary data"):
        read(write_request({"half": np.ones(1, dtype)}, is_binary=False), info)
    with pytest.raises(Refusal, match=r"output 'half' is \w+, which has no form in JSON\. Ask"):
        read(Body(b'{"inputs": []}', None), outputs=(info,))


def read_or_refusal(content: bytes, json_bytes: str | None) -> InferRequest | Refusal:
    try:
        return read_request(content, json_bytes, inputs=(X, IDS), outputs=(Y,))
    except Refusal as refusal:
        return refusal


MUTATED = write_request(
    {"x": np.ones((2, 2), np.float32), "ids": np.arange(2)},
    outputs=[RequestedOutput("y", True)],
    id="7",
)


@given(
    st.lists(
        st.tuples(st.integers(0, len(MUTATED.content) - 1), st.binary(max_size=3)), max_size=4
    ),
    st.integers(0, len(MUTATED.content)),
    st.none() | st.integers(-1, 400).map(str) | st.text(max_size=5),
)
def test_whatever_is_sent_is_refused_or_fits(
    changes: list[tuple[int, bytes]], end: int, json_bytes: str | None
):
    content = bytearray(MUTATED.content)
    for place, written in changes:
        content[place : place + len(written)] = written
    for length in (json_bytes, str(MUTATED.json_bytes)):
        for raw in (bytes(content), bytes(content[:end])):
            got = read_or_refusal(raw, length)
            if isinstance(got, Refusal):
                assert got.status == 400
                json.dumps({"error": str(got)}).encode()
                continue
            for name, array in got.inputs.items():
                assert array.dtype == {"x": np.float32, "ids": np.int64}[name]
                assert array.nbytes <= len(raw) * 8
            assert {output.name for output in got.outputs} <= {"y"}


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_any_json_as_data_is_refused_or_fits(data: object):
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": data}
    got = read_or_refusal(json.dumps({"inputs": [tensor]}).encode(), None)
    if isinstance(got, Refusal):
        return
    assert got.inputs["x"].shape == (2,)
    assert np.isfinite(got.inputs["x"]).all()
