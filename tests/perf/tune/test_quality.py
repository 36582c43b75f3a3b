from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ValidationError
from moh_deploy.package import OnnxPackage, Spread
from moh_deploy.perf.tune.quality import Quality, check_same_outputs, flipped_tokens
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.onnxruntime.runner import OrtRunner
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.checks import Flips
from moh_deploy.validate.reference.input_sets import InputSet
from moh_deploy.validate.reference.valid_tokens import EVERY_TOKEN
from tests.handmade_package import LAYER, vectors, write_package
from tests.validate.compare.test_parity_report import UNKNOWN

FILE = InputSet("in.npz", {"batch": 3, "seq": 5}, vectors(batch=3, seq=5).inputs, 1.0)


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package")


def session(package: OnnxPackage) -> Runner:
    return open_runner(package, Variant(kernels="off", extra_outputs=package.gate_names))


OPEN = np.full((1, 8, 4), 0.5, np.float32)


def gates_with(*heads: float) -> Array:
    """Return gates [1, 8, 4], those of the first token as given."""
    gates = OPEN.copy()
    gates[0, 0] = heads
    return gates


def test_gate_near_zero_is_no_flip_where_gates_agree_as_a_whole():
    layers = [replace(LAYER, gates="gates", num_shared_heads=1)]
    near_zero = {LAYER.path: Spread(1e-2, 3e-2)}
    for wanted, got, tokens in (
        (gates_with(0.5, 0.5, 0.02, 0), gates_with(0.5, 0.5, 0, 0.02), 0),
        (gates_with(0.5, 0.5, 0.04, 0), gates_with(0.5, 0.5, 0, 0), 1),
        (gates_with(0.5, 0.5, 0.02, 0), gates_with(0.5, 0.545, 0, 0), 1),
        # Each gate is near 0, and together they differ by more than rounding moves them.
        (OPEN * [1, 0.04, 0.04, 0.04], OPEN * [1, 0, 0, 0], 8),
        # A shared head stays open.
        (gates_with(0.02, 0.5, 0.5, 0), gates_with(0, 0.5, 0.5, 0), 1),
    ):
        sides = {"gates": wanted}, {"gates": got}
        assert flipped_tokens(*sides, layers, EVERY_TOKEN, near_zero) == tokens
        assert flipped_tokens(*sides, layers, EVERY_TOKEN, {}) == max(tokens, 1)


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


@pytest.mark.parametrize(
    ("changed", "verdict", "is_good"),
    [
        ((), "cannot tell", True),
        (UNKNOWN.changed, "cannot tell", False),
        ((), "failed", False),
    ],
)
def test_too_few_samples_are_no_failure_of_an_equal_package(
    changed: tuple[object, ...], verdict: str, is_good: bool
):
    metric = replace(UNKNOWN, changed=changed, verdict=verdict)
    quality = Quality(20, Flips(0, 140), (metric,), (str(metric.reason),))
    assert not quality.good
    assert quality.of_equal().good == is_good
    assert (quality.too_few is None) == (verdict == "failed")
    flips = replace(quality, failed=("1 of 140 tokens chose other heads",))
    assert not flips.of_equal().good
