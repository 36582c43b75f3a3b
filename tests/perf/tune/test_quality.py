from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.perf.tune.quality import check_same_outputs
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.onnxruntime.runner import OrtRunner
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.input_sets import InputSet
from tests.handmade_package import vectors, write_package

FILE = InputSet("in.npz", {"batch": 3, "seq": 5}, vectors(batch=3, seq=5).inputs, 1.0)


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package")


def session(package: OnnxPackage) -> Runner:
    return open_runner(package, Variant(kernels="off", extra_outputs=package.gate_names))


def test_equal_outputs_are_equal(package: OnnxPackage):
    assert check_same_outputs(package, package, session(package), [FILE]) == {}
    assert check_same_outputs(package, package, session(package), []) == {}


def test_other_outputs_are_refused_with_the_file(package: OnnxPackage, tmp_path: Path):
    other = write_package(tmp_path / "other", scale=1.5)
    with pytest.raises(ValidationError, match="output 'y'"):
        check_same_outputs(package, other, session(other), [FILE])


def test_run_in_which_tokens_chose_other_heads_is_counted(package: OnnxPackage, monkeypatch):
    runner, run = session(package), OrtRunner.run

    def flipped(self: Runner, inputs: dict[str, Array]) -> dict[str, Array]:
        results = run(self, inputs)
        if self is not runner:
            return results
        gates = results["gates_0"].copy()
        gates[0, 1, 2] = 1.0 if gates[0, 1, 2] == 0 else 0.0
        gates[2, 0, :] = np.where(gates[2, 0] == 0, 1.0, 0.0)
        return {**results, "gates_0": gates, "y": results["y"] + 1}

    monkeypatch.setattr(OrtRunner, "run", flipped)
    other = replace(FILE, name="other.npz")
    assert check_same_outputs(package, package, runner, [FILE, other]) == {
        "in.npz": 2,
        "other.npz": 2,
    }
