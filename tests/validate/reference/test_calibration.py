from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import OnnxPackage
from moh_deploy.validate.reference.calibration import calibration_runs
from tests.handmade_package import vectors, write_package


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package")


def written(folder: Path, name: str, *batches: int, seed: int = 50) -> Path:
    """Write samples that no recorded run has."""
    found = [vectors(batch=size, seq=3, seed=seed + size).inputs for size in batches]
    path = folder / f"{name}.npz"
    np.savez(path, **{key: np.concatenate([run[key] for run in found]) for key in found[0]})
    return path


def test_samples_run_in_batches_of_the_examples_size(package: OnnxPackage, tmp_path: Path):
    size = package.manifest.dims["batch"]
    path = written(tmp_path, "inputs", size + 1)
    runs = calibration_runs(package, [path], [])
    name = package.manifest.inputs[0].name
    assert [len(run[name]) for run in runs] == [size, 1]
    np.testing.assert_array_equal(np.concatenate([run[name] for run in runs]), np.load(path)[name])


@pytest.mark.parametrize("judge", ["recorded", "file"])
def test_a_sample_that_judges_is_refused(package: OnnxPackage, tmp_path: Path, judge: str):
    mine, judged = written(tmp_path, "mine", 2), [written(tmp_path, "judged", 4)]
    assert calibration_runs(package, [mine], judged)
    other = np.load(judged[0]) if judge == "file" else package.vectors[-1].inputs
    # One sample of several is enough, at another place.
    both = {name: np.concatenate([np.load(mine)[name][:1], other[name][:1]]) for name in other}
    np.savez(mine, **both)
    with pytest.raises(ConfigError, match=r"mine\.npz holds a sample of .*which judges the pack"):
        calibration_runs(package, [mine], judged)


def test_static_scales_need_inputs(package: OnnxPackage):
    with pytest.raises(ConfigError, match="static scales are made of inputs, and none are given"):
        calibration_runs(package, [], [])
