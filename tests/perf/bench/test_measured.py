import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.package import OnnxPackage, with_choices
from moh_deploy.perf.bench.measured import Agreement, agreement, layer_work
from moh_deploy.runtime.base import Variant
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.input_sets import InputSet, input_sets
from tests.kernel_library import required_library
from tests.two_layers import write_two_layers

Y = np.array([1.0, -2.0, 4.0], np.float32)


def compared(got: Array, expected: Array = Y, *precisions: str) -> Agreement:
    return agreement([got], {"y": expected}, precisions, inputs="recorded (batch=2)")


def test_rounding_is_no_difference_and_more_is():
    same = compared(Y + np.float32(1e-5))
    assert same.reason is None
    assert same.max_abs_error == pytest.approx(1e-5, rel=0.1)
    assert same.tolerance == pytest.approx(4e-4)
    differs = compared(Y + np.float32(1e-2))
    assert "output 'y' of vectors recorded (batch=2) differs by 0.01" in differs.reason


def test_what_computes_in_half_precision_may_differ_by_its_rule():
    half = Y + np.float32(1e-2)
    assert compared(half, Y, "float32", "float16").reason is None
    assert compared(Y.astype(ml_dtypes.bfloat16)).reason is None
    assert compared(Y, Y.astype(np.float16)).reason is None


def test_numbers_that_count_have_no_rounding():
    assert compared(np.array([1, 3]), np.array([1, 2]), "float16").reason is not None


def test_outputs_that_cannot_be_compared_differ():
    assert "of shape [2], the reference [3]" in compared(Y[:2]).reason
    assert "differs by" in compared(np.array([1.0, np.inf, 4.0], np.float32)).reason
    assert "nan" in compared(np.array([1.0, np.nan, 4.0], np.float32)).reason
    more = agreement([Y, Y], {"y": Y}, (), inputs="recorded")
    assert (more.reason, math.isnan(more.max_abs_error)) == ("it has 2 outputs, not 1.", True)


def test_model_without_outputs_agrees():
    assert agreement([], {}, (), inputs="recorded") == Agreement(0.0, None, None)


def test_worst_output_is_the_one_that_is_told():
    found = agreement([Y, Y + np.float32(1e-5)], {"a": Y, "b": Y}, ("float32",), inputs="recorded")
    assert found.max_abs_error > 0


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_two_layers(tmp_path / "package")


def chosen(package: OnnxPackage, output: Path, **choices: str) -> OnnxPackage:
    layers = with_choices(package.manifest.layers, choices, dims=list(package.manifest.dims))
    return write_choices(package, layers, output)


def test_rows_are_those_of_the_open_gates_on_kernels_only(package: OnnxPackage):
    required_library()
    sets = input_sets(package, [], [])
    opened = [int(np.count_nonzero(gates)) for gates in package.vectors[0].gates]
    assert 0 < opened[0] < 24
    (on_kernels,) = layer_work(package, sets, Variant(kernels="require", threads=1))
    assert [kernel.rows_computed for kernel in on_kernels] == opened
    assert [kernel.rows_dense for kernel in on_kernels] == [24, 24]
    assert [kernel.runs_as for kernel in on_kernels] == ["kernel", "kernel"]
    (as_functions,) = layer_work(package, sets, Variant(kernels="off", threads=1))
    assert [function.rows_computed for function in as_functions] == [24, 24]
    assert [function.runs_as for function in as_functions] == ["function", "function"]
    assert [function.active_share for function in as_functions] == [n / 24 for n in opened]


def test_dense_layers_compute_every_row(package: OnnxPackage, tmp_path: Path):
    required_library()
    layers = with_choices(package.manifest.layers, {"blocks.0.attn": "dense"})
    mixed = write_choices(package, layers, tmp_path / "mixed")
    (work,) = layer_work(mixed, input_sets(mixed, [], []), Variant(kernels="auto", threads=1))
    assert [(item.choice, item.runs_as) for item in work] == [
        ("dense", "dense"),
        ("sparse", "kernel"),
    ]
    assert work[0].rows_computed == 24
    assert work[1].rows_computed < 24


def test_choice_by_size_is_the_one_of_these_inputs(package: OnnxPackage, tmp_path: Path):
    required_library()
    by_size = chosen(package, tmp_path / "by_size", **{"all": "sparse", "all[seq<=3]": "dense"})
    (short,) = input_sets(by_size, [], [])
    x = np.concatenate([short.inputs["x"]] * 2, axis=1)
    long = InputSet("long", {"batch": 2, "seq": 6}, {"x": x}, 1.0)
    at_short, at_long = layer_work(by_size, [short, long], Variant(kernels="auto", threads=1))
    assert [item.choice for item in (*at_short, *at_long)] == ["dense"] * 2 + ["sparse"] * 2
    assert [item.rows_computed == item.rows_dense for item in (*at_short, *at_long)] == [
        True,
        True,
        False,
        False,
    ]


def test_break_even_is_predicted_for_each_layer(package: OnnxPackage):
    (work,) = layer_work(package, input_sets(package, [], []), Variant(kernels="auto", threads=1))
    for item in work:
        assert set(item.break_even) == {"sparse"}
        assert item.predicted_fastest in ("dense", "sparse")
