"""Flips of unknown margins beside those that noise makes: no data, or a failure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from moh_deploy.graph.forced_gates import GateTypes, computed_gates, forced_gates
from moh_deploy.graph.weight_noise import ROUNDING_STEP
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Description, Runner
from moh_deploy.runtime.variants import Noise
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.output_parity import compare_output
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.parity_result import LayerParity
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.edge_cases.input_run import rounding_may_explain
from tests.handmade_package import vectors, write_package
from tests.kernel_library import NO_KERNELS

EXPECTED = vectors()  # 2 samples of 3 tokens
GATES = "gates_0"


@dataclass
class Noisy:
    """Variants whose router chooses other heads for some tokens as soon as weights move."""

    moved: int

    def why_not_forced(self) -> str | None:
        return None

    def forced(self, gates: GateTypes, inner: Sequence[str] = ()) -> Runner:
        raise AssertionError("asked for in vain")

    def noisy(self, noise: Noise, gates: GateTypes, inner: Sequence[str] = ()) -> Runner | None:
        assert list(gates) == [GATES]
        return self if noise == "weights" else None

    def describe(self) -> Description:
        return Description("a runtime", NO_KERNELS, {})

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        made = inputs[forced_gates(GATES)].copy()
        if inputs[ROUNDING_STEP] != 0:
            tokens = made.reshape(-1, made.shape[-1])
            tokens[: self.moved] = tokens[: self.moved] == 0
        return {computed_gates(GATES): made}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    written = write_package(tmp_path_factory.mktemp("flips") / "package")
    return replace(written, manifest=replace(written.manifest, precision="bfloat16"))


FLIPPED = LayerParity(
    "blocks.0.attn",
    "0",
    *(24, 20, 2, 0, 0.0, 1e-2),
    reason="2 of 6 tokens choose other heads",
    forced=True,
    flip_margin=math.inf,
    wrong=("choice",),
)


def said(package: OnnxPackage, layer: LayerParity = FLIPPED, moved: int = 2) -> str | None:
    report = ParityReport("bodies", 1, (), (layer,), True, 0, 1, (), NO_KERNELS)
    return rounding_may_explain(package, Noisy(moved), EXPECTED, report)


def test_as_few_flips_as_noise_makes_are_no_data(package: OnnxPackage):
    assert said(package) == (
        "no data: tokens choose other heads, 2 in layer 'blocks.0.attn', where noise of one step"
        " of bfloat16 in the weights changes the choice of 2. Their routers are of plain"
        " operators, so nobody knows whether these are ties; all else agrees."
    )


def test_more_flips_than_noise_makes_are_a_failure(package: OnnxPackage):
    assert said(package, moved=1) is None


@pytest.mark.parametrize(
    "change",
    [
        {"flip_margin": 0.5},
        {"wrong": ("choice", "attention")},
        {"wrong": ("gates",)},
        {"forced": False},
    ],
    ids=["known margin", "attention differs too", "gates alone", "behind other flips"],
)
def test_whatever_else_differs_is_a_failure(package: OnnxPackage, change: dict[str, object]):
    assert said(package, replace(FLIPPED, **change)) is None  # type: ignore[arg-type]


def test_an_output_that_differs_is_a_failure(package: OnnxPackage):
    y = EXPECTED.outputs["y"]
    rule = BUILT_IN_POLICY.rule("float32")
    wrong = compare_output("y", "0", y + 1, y, rule)
    assert wrong.reason is not None
    report = ParityReport("bodies", 1, (wrong,), (FLIPPED,), True, 0, 1, (), NO_KERNELS)
    assert rounding_may_explain(package, Noisy(6), EXPECTED, report) is None


def test_in_float32_a_flip_is_a_failure(package: OnnxPackage):
    wide = replace(package, manifest=replace(package.manifest, precision="float32"))
    assert said(wide, moved=6) is None
