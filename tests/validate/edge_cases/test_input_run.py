"""What is said of runners that refuse, give NaN, or give other shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from moh_deploy.errors import BackendError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Description
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.edge_cases.input_run import InputJudge, NanKeptVariants, nan_in
from moh_deploy.validate.edge_cases.input_states import InputState
from moh_deploy.validate.edge_cases.source import CaseResult
from moh_deploy.validate.reference.layer_values import Recorder
from tests.handmade_package import WIDTH, write_package
from tests.kernel_library import NO_KERNELS

Outputs = Callable[[], dict[str, Array]]


@dataclass
class Fake:
    """A runner that gives what it was told, or refuses."""

    outputs: dict[str, Array] | str

    def describe(self) -> Description:
        return Description("a runtime", NO_KERNELS, {"blocks.0.attn/moh": "kernel"})

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if isinstance(self.outputs, str):
            raise BackendError(self.outputs)
        return self.outputs


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_package(tmp_path_factory.mktemp("judged") / "package", with_layer=False)


def judged(
    package: OnnxPackage,
    got: Array | str,
    reference: Array | str,
    *,
    shape: tuple[int, int] = (2, 3),
) -> CaseResult:
    subject = Fake(got if isinstance(got, str) else {"y": got})
    bodies = Fake(reference if isinstance(reference, str) else {"y": reference})
    recorder = Recorder(package, bodies, ())
    judge = InputJudge(package, subject, recorder, None, BUILT_IN_POLICY)
    x = np.zeros((*shape, WIDTH), np.float32)
    return judge.judge(InputState("a case", {"x": x}))


def y(value: float = 1.0, *, batch: int = 2, seq: int = 3) -> Array:
    return np.full((batch, seq, WIDTH), value, np.float32)


REFUSED = "the model does not run: a Reshape node"


def test_equal_outputs_pass(package: OnnxPackage):
    assert judged(package, y(), y()).status == "passed"


def test_package_that_refuses_what_its_function_bodies_run_fails(package: OnnxPackage):
    result = judged(package, REFUSED, y())
    assert result.status == "failed"
    assert result.detail == (
        f"case 'a case': the function bodies run, but the package does not: {REFUSED}"
    )


def test_refusal_by_both_is_no_pass(package: OnnxPackage):
    assert judged(package, REFUSED, REFUSED).status == "not run"
    empty = judged(package, REFUSED, REFUSED, shape=(2, 0))
    assert empty.status == "not applicable"
    assert empty.detail.endswith(REFUSED)


def test_refusal_by_a_kernel_fails_unless_it_was_given_other_shapes(package: OnnxPackage):
    by_kernel = "while running MoHAttention node. Name:'blocks.0.attn/moh' Status Message:"
    crash = judged(package, f"{by_kernel} division by zero", REFUSED, shape=(2, 0))
    assert crash.status == "failed"
    assert "a kernel refuses it" in crash.detail
    shapes = f"{by_kernel} MoHAttention: gates is [1, 0, 4]; expected [2, 0, 4]."
    assert judged(package, shapes, REFUSED, shape=(2, 0)).status == "not applicable"


def test_empty_outputs_without_a_reference_must_be_of_the_manifests_shape(package: OnnxPackage):
    right = judged(package, y(seq=0), REFUSED, shape=(2, 0))
    assert right.status == "passed"
    wrong = judged(package, y(batch=1, seq=0), REFUSED, shape=(2, 0))
    assert wrong.status == "failed"
    assert "output 'y' is of shape [1, 0, 8], expected ['batch', 'seq', 8]" in wrong.detail


def test_numbers_without_a_reference_are_no_pass(package: OnnxPackage):
    result = judged(package, y(), REFUSED)
    assert result.status == "not run"
    assert "there is nothing to compare with" in result.detail


def with_nan(*places: int) -> Array:
    changed = y()
    changed.reshape(-1)[list(places)] = np.nan
    return changed


def test_nan_is_right_where_the_reference_has_it(package: OnnxPackage):
    same = judged(package, with_nan(3, 5), with_nan(3, 5))
    assert same.status == "passed"
    assert same.detail.endswith("; 2 elements are NaN in the function bodies too")
    for got, reference in ((with_nan(3), y()), (y(), with_nan(3)), (with_nan(3), with_nan(5))):
        assert judged(package, got, reference).status == "failed"


def test_nan_is_right_with_gates_fed_too(package: OnnxPackage):
    @dataclass(frozen=True)
    class FedGates(PackageVariants):
        def forced(self, gates: object, inner: object = ()) -> Any:
            return Fake({"y": with_nan(3, 5)})

    reference = replace(package.vectors[0], outputs={"y": with_nan(3)})
    variants = NanKeptVariants(FedGates(package), nan_in(package, reference))
    made = variants.forced({}).run({})["y"].reshape(-1)
    assert (made[3], np.isnan(made[5])) == (0.0, True)


def test_nothing_but_nan_is_no_data(package: OnnxPackage):
    result = judged(package, y(np.nan), y(np.nan))
    assert result.status == "not applicable"
    assert "NaN in every output" in result.detail
    assert judged(package, y(), y(np.nan)).status == "failed"


def test_state_without_inputs_is_not_run(package: OnnxPackage):
    recorder = Recorder(package, Fake({}), ())
    judge = InputJudge(package, Fake({}), recorder, None, BUILT_IN_POLICY)
    assert judge.judge(InputState("a case", None, "why")).status == "not run"
    result = judge.judge(InputState("a case", None, "why", exists=False))
    assert (result.status, result.detail) == ("not applicable", "why")
