import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from moh_deploy.package import PackageWriter, TensorInfo, VectorSet
from moh_deploy.validate.bisection.divergence import (
    InnerValue,
    _compared,
    compare_values,
    first_beyond,
    node_errors,
)
from moh_deploy.validate.bisection.places import ForcedModel, ModelGraph
from tests.handmade_package import MANIFEST
from tests.true_manifest import finish_true

GRAPH = """
g (float[n] x) => (float[n] first, float[n] second)
{ shared = Neg(x)
  a = Abs(shared)
  first = Exp(a)
  b = Relu(shared)
  second = Exp(b) }
"""


def graph() -> ModelGraph:
    return ModelGraph(onnx.parser.parse_graph(GRAPH))


@pytest.mark.parametrize(
    ("got", "expected", "error", "finite"),
    [
        ([1.0, np.inf], [1.0, 7e4], np.inf, False),
        ([1.0, -np.inf], [1.0, -3.4e38], 0.0, True),  # a mask
        ([1.0, -np.inf], [1.0, -np.inf], 0.0, True),
        ([1.0, np.nan], [1.0, np.nan], 0.0, True),
        ([1.0, np.nan], [1.0, 2.0], np.inf, False),
        ([1.0, 2.5], [1.0, 2.0], 0.5, True),
        ([], [], 0.0, True),
    ],
)
def test_masks_are_equal_and_overflow_is_not(
    got: list[float], expected: list[float], error: float, finite: bool
):
    value = _compared("v", np.asarray(got, np.float32), np.asarray(expected, np.float32))
    assert (value.error, value.finite) == (error, finite)


def test_first_that_is_not_finite_comes_before_the_first_that_is_far_off():
    x = np.ones(2, np.float32)
    values = {
        "shared": _compared("shared", x, x),
        "a": _compared("a", x * 1.1, x),
        "first": _compared("first", x * 1.2, x),
        "b": _compared("b", x * np.inf, x),
    }
    errors = node_errors(graph(), values)
    found = first_beyond(errors, 0.05, range(5))
    assert found.place.value == "b"
    assert (found.before, found.behind, found.finite) == (0.0, math.inf, False)
    without = {index: error for index, error in errors.items() if error.finite}
    assert (first_beyond(without, 0.05, range(5)) or found).place.value == "a"
    assert first_beyond(without, 0.5, range(5)) is None
    assert first_beyond(errors, 0.05, range(1)) is None


def test_result_that_only_its_cast_has_by_a_shared_name_is_compared():
    text = "g (float[n] x) => (float[n] y) { low = Exp(x)  y = Cast <to = 1> (low) }"
    values = {"y": InnerValue("y", 0.5, 2.0, (3,), finite=True)}
    errors = node_errors(ModelGraph(onnx.parser.parse_graph(text)), values)
    assert {errors[index].place.value: errors[index].behind for index in errors} == {"low": 0.25}


OF_PADDING = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[batch,seq,2] x, int64[batch,seq] mask) => (float[batch,seq,2] y)
<int64[1] last = {-1}, float two = {2.0}>
{ valid = Cast <to = 1> (mask)
  apart = Unsqueeze (valid, last)
  ADDED
  y = Mul (h, apart) }
"""


@pytest.mark.parametrize(("named", "error"), [("mask", 0.0), (None, 3.0)])
def test_what_padding_has_of_an_inner_value_is_not_compared(
    named: str | None, error: float, tmp_path: Path
):
    def written(name: str, added: str) -> ForcedModel:
        content = onnx.parser.parse_model(OF_PADDING.replace("ADDED", added))
        content = onnx.shape_inference.infer_shapes(content)
        shapes = (("x", "float32", ("batch", "seq", 2)), ("mask", "int64", ("batch", "seq")))
        manifest = replace(
            MANIFEST,
            inputs=tuple(TensorInfo(*shape) for shape in shapes),
            outputs=(TensorInfo("y", "float32", ("batch", "seq", 2)),),
            dims={"batch": 1, "seq": 3},
            layers=(),
            ops={},
            valid_tokens=named,
        )
        with PackageWriter(tmp_path / name) as writer:
            onnx.save(content, writer.path("model.onnx"))
            return ForcedModel.of(finish_true(writer, manifest, [run]), [run])

    x, mask = np.ones((1, 3, 2), np.float32), np.asarray([[1, 1, 0]])
    run = VectorSet(
        {"batch": 1, "seq": 3},
        {"x": x, "mask": mask},
        {"y": x * mask.astype(np.float32)[..., None]},
        (),
        (),
    )
    right = written("right", "h = Identity (x)")
    # 2 - valid: 1 of a valid token, 2 of padding.
    added = "scale = Sub (two, apart) twice = Mul (scale, scale) h = Mul (x, twice)"
    wrong = written("wrong", added)
    values = compare_values(wrong, right, ["h", "y"], [run])
    assert (values["h"].error, values["h"].size, values["y"].error) == (error, 1.0, 0.0)
    assert values["h"].shape == (1, 3, 2)
