from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage, TensorInfo, VectorSet
from moh_deploy.system.npz import BFLOAT16, Array
from moh_deploy.validate.sized_inputs import batch_dim, num_samples, sized_inputs
from tests.handmade_package import MANIFEST, vectors, write_package


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package", sets=(vectors(), vectors(batch=5)))


def with_inputs(inputs: dict[str, Array], *specs: TensorInfo, **dims: int) -> OnnxPackage:
    """Return a package of these inputs that is nowhere on disk."""
    manifest = replace(MANIFEST, inputs=specs, dims=dims)
    return OnnxPackage(Path("nowhere"), manifest, (VectorSet(dims, inputs, {}, (), ()),))


def test_all_combinations_are_made_and_recorded_runs_used_where_there_are(package: OnnxPackage):
    sets = sized_inputs(package, {"batch": [5, 7], "seq": [3, 1]})
    assert [(one.sizes, one.name) for one in sets] == [
        ({"batch": 5, "seq": 3}, "recorded"),
        ({"batch": 5, "seq": 1}, "random"),
        ({"batch": 7, "seq": 3}, "random"),
        ({"batch": 7, "seq": 1}, "random"),
    ]
    assert [one.inputs["x"].shape for one in sets] == [(5, 3, 8), (5, 1, 8), (7, 3, 8), (7, 1, 8)]
    np.testing.assert_array_equal(sets[0].inputs["x"], package.vectors[1].inputs["x"])


def test_dimensions_that_are_not_named_have_the_examples_size(package: OnnxPackage):
    (one,) = sized_inputs(package, {"seq": [7]})
    assert one.sizes == {"batch": 2, "seq": 7}


def test_random_elements_are_recorded_ones_of_the_same_dtype():
    ids, mask = np.array([[3, 900]], np.int64), np.array([[True, True]])
    halves = np.array([[0.5, 2.0]], BFLOAT16)
    package = with_inputs(
        {"ids": ids, "mask": mask, "h": halves},
        TensorInfo("ids", "int64", ("batch", "seq")),
        TensorInfo("mask", "bool", ("batch", "past + 1")),
        TensorInfo("h", "bfloat16", (1, "2*seq")),
        batch=1,
        seq=2,
        past=1,
    )
    package = with_inputs(
        {**package.vectors[0].inputs, "h": np.tile(halves, 2)},
        *package.manifest.inputs,
        **package.manifest.dims,
    )
    (one,) = sized_inputs(package, {"batch": [3], "seq": [50], "past": [9]})
    assert {name: array.shape for name, array in one.inputs.items()} == {
        "ids": (3, 50),
        "mask": (3, 10),
        "h": (1, 100),
    }
    assert set(one.inputs["ids"].flat) == {3, 900}
    assert one.inputs["mask"].all()
    assert one.inputs["h"].dtype == BFLOAT16


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
