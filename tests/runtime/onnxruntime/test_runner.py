"""Steps of one binding return what runs by hand do, and refuse what those refuse."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper, parser

from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import CacheBuffer, CachesInPlace
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.onnxruntime.runner import OrtRunner
from moh_deploy.runtime.onnxruntime.session import open_session
from moh_deploy.system.npz import BFLOAT16, Array

ROWS = 10
TABLE = np.arange(2 * ROWS).reshape(ROWS, 2) + 0.5
# `y` sums what the mask shows of a cache, which is a buffer with room or grows by each token.
_GRAPH = """
    agraph (int64[batch, seq] ids, int64[batch, total] mask, {dtype}[batch, {length}, 2] past)
        => ({dtype}[batch, 2] y, {dtype}[batch, {after}, 2] present) {{
        new = Gather <axis = 0> (table, ids)
        {write}
        shown = Cast <to = {code}> (mask)
        columns = Unsqueeze (shown, two)
        visible = Mul (filled, columns)
        y = ReduceSum <keepdims = 0> (visible, one)
    }}"""
_IN_PLACE = """
        total_length = Shape <start = 1, end = 2> (mask)
        added = Shape <start = 1, end = 2> (ids)
        before = Sub (total_length, added)
        batch_size = Shape <start = 0, end = 1> (ids)
        places = Expand (before, batch_size)
        present = TensorScatter <axis = 1> (past, new, places)
        filled = Slice (present, zero, total_length, one)"""
_GROWING = """
        present = Concat <axis = 1> (past, new)
        filled = Identity (present)"""
CACHES = CachesInPlace((CacheBuffer("past", "present", 1),), "total - seq", "seq")
FOLLOWING = {"past": "present"}


def opened(tmp_path: Path, *, in_place: bool, dtype: str = "float") -> OrtRunner:
    code = onnx.TensorProto.DataType.Value(dtype.upper())
    length, after = ("buffer", "buffer") if in_place else ("past", "total")
    write = _IN_PLACE if in_place else _GROWING
    text = _GRAPH.format(dtype=dtype, code=code, length=length, after=after, write=write)
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]>{text}')
    table = TABLE.astype(helper.tensor_dtype_to_np_dtype(code))
    numbers = {name: np.array([n]) for n, name in enumerate(("zero", "one", "two"))}
    for name, array in {"table": table, **numbers}.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "model.onnx")
    runner = open_session(tmp_path / "model.onnx", Variant(sizes_change=True))
    return replace(runner, caches=CACHES if in_place else None)


def empty(*, in_place: bool, places: int = 12, dtype: object = np.float32) -> dict[str, Array]:
    # Behind what is filled may be anything.
    return {"past": np.full((2, places if in_place else 0, 2), 7, dtype)}


def step_inputs(new: list[list[int]], total: int) -> dict[str, Array]:
    mask = np.ones((2, 20), np.int64)
    mask[1, 0] = 0
    return {"ids": np.array(new), "mask": mask[:, :total]}


STEPS = [
    step_inputs([[1, 2, 3], [0, 4, 5]], 3),
    step_inputs([[6], [7]], 4),
    step_inputs([[8], [9]], 5),
    step_inputs([[1, 2], [3, 4]], 7),
    step_inputs([[0], [5]], 8),
]


@pytest.mark.parametrize("dtype", ["float", "double", "float16"])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_steps_return_what_runs_by_hand_do(tmp_path: Path, dtype: str, in_place: bool, own: bool):
    runner = opened(tmp_path, in_place=in_place, dtype=dtype)
    number = {"float": np.float32, "double": np.float64, "float16": np.float16}[dtype]
    state = empty(in_place=in_place, dtype=number)
    given = {name: array.copy() for name, array in state.items()}
    # That of OrtRunner, and that of runners which have none of their own.
    step = runner.steps(state, FOLLOWING) if own else Runner.steps(runner, state, FOLLOWING)
    found = [step(inputs) for inputs in STEPS]
    held = dict(state)
    for inputs, got in zip(STEPS, found, strict=True):
        expected = runner.run({**inputs, **held})
        held["past"] = expected.pop("present")
        assert got.keys() == {"y"}
        np.testing.assert_array_equal(got["y"], expected["y"])
    ids = [np.concatenate([inputs["ids"][row] for inputs in STEPS]) for row in (0, 1)]
    sums = [TABLE[ids[0]].sum(0), TABLE[ids[1][1:]].sum(0)]
    np.testing.assert_allclose(found[-1]["y"], sums)
    np.testing.assert_array_equal(state["past"], given["past"])


class OnCpu(ort.IOBinding):
    """A binding of a session on the CPU that notes which memory was asked for."""

    asked: dict[str, str] = {}  # noqa: RUF012  (of one test)

    def bind_output(self, name: str, device_type: str = "cpu") -> None:
        self.asked[name] = device_type
        super().bind_output(name)


def test_on_a_gpu_a_state_stays_there_unless_checks_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = """g (float[new, 2] x, float[past, 2] a, float[past, 2] b)
        => (float[total, 2] y, float[total, 2] more_a, float[total, 2] more_b) {
        more_a = Concat <axis = 0> (a, x)
        more_b = Concat <axis = 0> (b, x)
        y = Add (more_a, more_b)
    }"""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>{text}')
    onnx.save(model, tmp_path / "model.onnx")
    runner = replace(open_session(tmp_path / "model.onnx"), device="cuda")
    monkeypatch.setattr(runner.session, "io_binding", lambda: OnCpu(runner.session), raising=False)
    monkeypatch.setattr(OnCpu, "asked", {})
    empties = {name: np.zeros((0, 2), np.float32) for name in "ab"}
    step = runner.steps(empties, {"a": "more_a", "b": "more_b"})
    for length in (3, 4):
        found = step({"x": np.ones((length - 3 or 3, 2), np.float32)})
        np.testing.assert_array_equal(found["y"], np.full((length, 2), 2))
    # `a` says how long both are.
    assert OnCpu.asked == {"y": "cpu", "more_a": "cpu", "more_b": "cuda"}


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"ids": np.array([[6], [10]])}, r"'ids' is 10 at \[1, 0\], expected -10 to"),
        ({"ids": np.array([[6.0], [1.0]])}, r"'ids' is float64\[2, 1\]"),
        ({"ids": np.array([[6]])}, "'batch' is inconsistent"),
        ({"mask": np.ones((2, 4, 1), np.int64)}, "with 3 axes"),
        ({"other": np.ones(1)}, "there is no input 'other'"),
    ],
)
def test_wrong_step_is_refused_and_the_next_goes_on(
    tmp_path: Path, in_place: bool, wrong: dict[str, Array], words: str
):
    runner = opened(tmp_path, in_place=in_place)
    good = runner.steps(empty(in_place=in_place), FOLLOWING)
    bad = runner.steps(empty(in_place=in_place), FOLLOWING)
    expected = [good(inputs)["y"] for inputs in STEPS]
    bad(STEPS[0])
    with pytest.raises(ConfigError, match=words):
        bad({**STEPS[1], **wrong})
    for inputs, y in zip(STEPS[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(bad(inputs)["y"], y)


def test_step_behind_the_room_of_its_buffers_is_refused(tmp_path: Path):
    step = opened(tmp_path, in_place=True).steps(empty(in_place=True, places=4), FOLLOWING)
    for inputs in STEPS[:2]:
        step(inputs)
    with pytest.raises(ConfigError, match=r"have 4 places .* 4 of them filled: 1 more"):
        step(STEPS[2])


def test_table_of_positions_limits_a_cache_that_grows(tmp_path: Path):
    text = """agraph (float[new, 2] x, float[past, 2] past)
            => (float[new, 2] y, float[total, 2] present) {
        present = Concat <axis = 0> (past, x)
        past_shape = Shape <start = 0, end = 1> (past)
        new_shape = Shape <start = 0, end = 1> (x)
        first = Squeeze (past_shape)
        new_length = Squeeze (new_shape)
        end = Add (first, new_length)
        positions = Range (first, end, one)
        rows = Gather <axis = 0> (table, positions)
        y = Add (x, rows)
    }"""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]>{text}')
    for name, array in {"table": TABLE[:3].astype(np.float32), "one": np.array(1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "model.onnx")
    x = np.zeros((1, 2), np.float32)
    step = open_session(tmp_path / "model.onnx").steps({"past": np.zeros((0, 2), "f4")}, FOLLOWING)
    found = [step({"x": x})["y"][0] for _ in range(3)]
    np.testing.assert_array_equal(found, TABLE[:3])
    with pytest.raises(ConfigError, match="need row 3 of 'table', a table of 3 rows"):
        step({"x": x})


def test_failure_of_a_step_names_the_node(tmp_path: Path):
    step = opened(tmp_path, in_place=False).steps(empty(in_place=False), FOLLOWING)
    # A mask that is as long as no cache: only the model itself knows that it may not be.
    with pytest.raises(BackendError, match=r"ONNX Runtime failed while running the model: .*Mul"):
        step(step_inputs([[1, 2], [3, 4]], 5))


def test_state_that_is_none_of_the_model_is_refused(tmp_path: Path):
    runner = opened(tmp_path, in_place=True)
    wrong: list[tuple[Callable[[Array], dict[str, Array]], str]] = [
        (lambda past: {"past": past.astype(np.float64)}, "'past' is float64"),
        (lambda past: {"past": past, "pass": past}, "there is no input 'pass'"),
        (lambda past: {"past": past[..., :1]}, "axis 2 is fixed at 2, got 1"),
    ]
    for change, words in wrong:
        with pytest.raises(ConfigError, match=words):
            runner.steps(change(empty(in_place=True)["past"]), FOLLOWING)


def test_state_of_bfloat16_goes_from_step_to_step(tmp_path: Path):
    text = """agraph (bfloat16[new] x, bfloat16[past] past)
            => (bfloat16[1] y, bfloat16[total] present) {
        present = Concat <axis = 0> (past, x)
        y = Slice (present, zero, one)
    }"""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]>{text}')
    for n, name in enumerate(("zero", "one")):
        model.graph.initializer.append(numpy_helper.from_array(np.array([n]), name))
    onnx.save(model, tmp_path / "model.onnx")
    runner = open_session(tmp_path / "model.onnx")
    step = runner.steps({"past": np.zeros(0, BFLOAT16)}, FOLLOWING)
    first = [step({"x": np.array([x], BFLOAT16)})["y"] for x in (1.5, 2.5, 3.5)]
    assert [float(y[0]) for y in first] == [1.5, 1.5, 1.5]
