from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.system.npz import write_npz
from moh_deploy.validate.input_sets import input_sets
from tests.handmade_package import vectors, write_package


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package", sets=(vectors(), vectors(batch=5)))


def test_recorded_run_at_the_examples_sizes_is_taken_without_files(package: OnnxPackage):
    (one,) = input_sets(package, [], [])
    assert (one.name, one.sizes, one.weight) == ("recorded", {"batch": 2, "seq": 3}, 1.0)
    np.testing.assert_array_equal(one.inputs["x"], package.vectors[0].inputs["x"])


def test_files_come_with_their_weights(package: OnnxPackage, tmp_path: Path):
    for seq in (1, 4):
        write_npz(tmp_path / f"{seq}.npz", vectors(batch=1, seq=seq).inputs)
    files = [tmp_path / "4.npz", tmp_path / "1.npz"]
    sets = input_sets(package, files, [1.0, 200.0])
    assert [(one.sizes["seq"], one.weight) for one in sets] == [(4, 1.0), (1, 200.0)]
    assert [one.weight for one in input_sets(package, files, [])] == [1.0, 1.0]


def test_directory_stands_for_its_files_in_the_order_of_their_names(
    package: OnnxPackage, tmp_path: Path
):
    folder = tmp_path / "runs"
    folder.mkdir()
    with pytest.raises(ConfigError, match="has no npz files"):
        input_sets(package, [folder], [])
    for name, seq in (("b", 1), ("a", 4)):
        write_npz(folder / f"{name}.npz", vectors(batch=1, seq=seq).inputs)
    sets = input_sets(package, [folder], [1.0, 200.0])
    assert [(one.sizes["seq"], one.weight) for one in sets] == [(4, 1.0), (1, 200.0)]


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


def test_weights_without_files_are_refused(package: OnnxPackage):
    with pytest.raises(ConfigError, match="weights given: 1, files of inputs: 0;"):
        input_sets(package, [], [1.0])


def test_package_without_recorded_runs_needs_files(tmp_path: Path):
    package = write_package(tmp_path / "package", sets=())
    with pytest.raises(ConfigError, match="holds no recorded inputs"):
        input_sets(package, [], [])
