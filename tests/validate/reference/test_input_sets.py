from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, TensorInfo, VectorSet
from moh_deploy.system.npz import BFLOAT16, Array, write_npz
from moh_deploy.validate.reference.input_sets import (
    batch_dim,
    input_sets,
    num_samples,
    sized_inputs,
)
from tests.handmade_package import MANIFEST, vectors, write_package


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package", sets=(vectors(), vectors(batch=5)))


def test_recorded_run_at_the_examples_sizes_is_taken_without_files(package: OnnxPackage):
    (taken,) = input_sets(package, [], [])
    assert (taken.name, taken.sizes, taken.weight) == ("recorded", {"batch": 2, "seq": 3}, 1.0)
    np.testing.assert_array_equal(taken.inputs["x"], package.vectors[0].inputs["x"])


def test_files_and_those_of_directories_come_with_their_weights(
    package: OnnxPackage, tmp_path: Path
):
    folder = tmp_path / "runs"
    folder.mkdir()
    with pytest.raises(ConfigError, match="has no npz files"):
        input_sets(package, [folder], [])
    # Files of a directory are taken in the order of their names.
    for name, seq in (("b", 1), ("a", 4)):
        write_npz(folder / f"{name}.npz", vectors(batch=1, seq=seq).inputs)
    for paths in ([folder / "a.npz", folder / "b.npz"], [folder]):
        sets = input_sets(package, paths, [1.0, 200.0])
        assert [(item.sizes["seq"], item.weight) for item in sets] == [(4, 1.0), (1, 200.0)]
        assert [item.weight for item in input_sets(package, paths, [])] == [1.0, 1.0]


def test_file_that_does_not_fit_is_refused_as_run_does(package: OnnxPackage, tmp_path: Path):
    write_npz(tmp_path / "in.npz", {"x": np.zeros((2, 3, 9), np.float32)})
    with pytest.raises(ConfigError, match=r"in\.npz: input 'x' is .* axis 2 is fixed at 8, got 9"):
        input_sets(package, [tmp_path / "in.npz"], [])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "weights given: 2, files of inputs: 1;"),
        ([0.0], "a weight is 0, expected a number above 0"),
        ([-1.0], "a weight is -1"),
        ([float("nan")], "a weight is nan"),
        ([float("inf")], "a weight is inf"),
    ],
)
def test_weights_that_mean_nothing_are_refused(
    package: OnnxPackage, tmp_path: Path, weights: list[float], message: str
):
    write_npz(tmp_path / "in.npz", vectors().inputs)
    with pytest.raises(ConfigError, match=message):
        input_sets(package, [tmp_path / "in.npz"], weights)
    with pytest.raises(ConfigError, match=r"weights given: \d, files of inputs: 0;"):
        input_sets(package, [], weights)


def test_package_without_recorded_runs_needs_files(tmp_path: Path):
    package = write_package(tmp_path / "package", sets=())
    with pytest.raises(ConfigError, match="holds no recorded inputs"):
        input_sets(package, [], [])


def with_inputs(inputs: dict[str, Array], *specs: TensorInfo, **dims: int) -> OnnxPackage:
    """Return a package of these inputs that is nowhere on disk."""
    manifest = replace(MANIFEST, inputs=specs, dims=dims)
    return OnnxPackage(Path("nowhere"), manifest, (VectorSet(dims, inputs, {}, (), ()),))


def test_all_combinations_are_made_and_recorded_runs_used_where_there_are(package: OnnxPackage):
    sets = sized_inputs(package, {"batch": [5, 7], "seq": [3, 1]})
    assert [(item.sizes, item.name) for item in sets] == [
        ({"batch": 5, "seq": 3}, "recorded"),
        ({"batch": 5, "seq": 1}, "random"),
        ({"batch": 7, "seq": 3}, "random"),
        ({"batch": 7, "seq": 1}, "random"),
    ]
    assert [item.inputs["x"].shape for item in sets] == [(5, 3, 8), (5, 1, 8), (7, 3, 8), (7, 1, 8)]
    np.testing.assert_array_equal(sets[0].inputs["x"], package.vectors[1].inputs["x"])
    # A dimension that is not named has the example's size.
    (made,) = sized_inputs(package, {"seq": [7]})
    assert made.sizes == {"batch": 2, "seq": 7}


def test_random_elements_are_recorded_ones_of_the_same_dtype():
    package = with_inputs(
        {
            "ids": np.array([[3, 900]], np.int64),
            "mask": np.array([[True, True]]),
            "h": np.array([[0.5, 2.0, 0.5, 2.0]], BFLOAT16),
        },
        TensorInfo("ids", "int64", ("batch", "seq")),
        TensorInfo("mask", "bool", ("batch", "past + 1")),
        TensorInfo("h", "bfloat16", (1, "2*seq")),
        batch=1,
        seq=2,
        past=1,
    )
    (made,) = sized_inputs(package, {"batch": [3], "seq": [50], "past": [9]})
    shapes = {name: array.shape for name, array in made.inputs.items()}
    assert shapes == {"ids": (3, 50), "mask": (3, 10), "h": (1, 100)}
    assert set(made.inputs["ids"].flat) == {3, 900}
    assert made.inputs["mask"].all()
    assert made.inputs["h"].dtype == BFLOAT16


def test_unknown_dimensions_and_impossible_sizes_are_refused(package: OnnxPackage):
    with pytest.raises(ConfigError, match="no dynamic dimension 'sep', it has 'batch', 'seq'") as e:
        sized_inputs(package, {"sep": [2]})
    assert e.value.hint == "Did you mean 'seq'?"
    with pytest.raises(ConfigError, match="dimension 'seq' is to be -1, expected at least 0"):
        sized_inputs(package, {"seq": [4, -1]})
    limited = replace(package, manifest=replace(package.manifest, dim_ranges={"seq": (2, 16)}))
    with pytest.raises(ConfigError, match="'seq' is 17; the model was traced for 2 to 16"):
        sized_inputs(limited, {"seq": [17]})


def test_samples_are_counted_by_the_batch_or_else_the_first_axis():
    x = TensorInfo("x", "float32", ("n", 4))
    assert batch_dim(MANIFEST) == "batch"
    assert num_samples(MANIFEST, {"batch": 6, "seq": 3}) == 6
    by_axis = replace(MANIFEST, inputs=(x,), dims={"n": 2})
    assert (batch_dim(by_axis), num_samples(by_axis, {"n": 9})) == ("n", 9)
    fixed = replace(MANIFEST, inputs=(replace(x, shape=(8, 4)),), dims={})
    assert (batch_dim(fixed), num_samples(fixed, {})) == (None, 8)
