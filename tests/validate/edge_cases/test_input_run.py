"""What is said of runners that refuse, give NaN, or give other shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from moh_deploy.errors import BackendError
from moh_deploy.graph.forced_gates import GateTypes, computed_gates, forced_gates
from moh_deploy.graph.weight_noise import ROUNDING_STEP
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Description, Runner
from moh_deploy.runtime.variants import Noise, PackageVariants
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.output_parity import compare_output
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.parity_result import LayerParity
from moh_deploy.validate.compare.policy import BUILT_IN_POLICY
from moh_deploy.validate.edge_cases.input_run import (
    InputJudge,
    NanKeptVariants,
    first_difference,
    nan_in,
    rounding_may_explain,
)
from moh_deploy.validate.edge_cases.source import CaseResult, InputState, Sides, body_source
from moh_deploy.validate.reference.layer_values import Recorder
from tests.edge_case_package import write_edge_package
from tests.handmade_package import WIDTH, vectors, write_package
from tests.kernel_library import NO_KERNELS
from tests.nightly import sampled
from tests.validate.edge_cases.planted_faults import Fault, Site, in_layer, planted

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
BY_KERNEL = "while running MoHAttention node. Name:'blocks.0.attn/moh' Status Message:"


@pytest.mark.parametrize(
    ("got", "reference", "shape", "status", "words"),
    [
        (y(), y(), (2, 3), "passed", "max abs error 0"),
        (
            *(REFUSED, y(), (2, 3), "failed"),
            f"case 'a case': the function bodies run, but the package does not: {REFUSED}",
        ),
        (REFUSED, REFUSED, (2, 3), "not run", REFUSED),
        (REFUSED, REFUSED, (2, 0), "not applicable", REFUSED),
        (*(f"{BY_KERNEL} division by zero", REFUSED, (2, 0), "failed"), "a kernel refuses it"),
        # A Reshape before the kernel guessed a size: that is the model's own limit.
        (
            f"{BY_KERNEL} MoHAttention: gates is [1, 0, 4]; expected [2, 0, 4].",
            *(REFUSED, (2, 0), "not applicable", "the model refuses it"),
        ),
        # Empty outputs without a reference must be of the manifest's shape.
        (y(seq=0), REFUSED, (2, 0), "passed", "every output is empty, of the shape in the"),
        (
            *(y(batch=1, seq=0), REFUSED, (2, 0), "failed"),
            "output 'y' is of shape [1, 0, 8], expected ['batch', 'seq', 8]",
        ),
        (y(), REFUSED, (2, 3), "not run", "there is nothing to compare with"),
        # Nothing but NaN is no data.
        (y(np.nan), y(np.nan), (2, 3), "not applicable", "NaN in every output"),
        (y(), y(np.nan), (2, 3), "failed", ""),
    ],
    ids=[
        *("equal", "package refuses", "both refuse", "both refuse nothing", "kernel refuses"),
        *("other shapes", "empty", "empty of another shape", "no reference", "all NaN"),
        "NaN in the reference only",
    ],
)
def test_how_a_state_ends(
    package: OnnxPackage,
    got: Array | str,
    reference: Array | str,
    shape: tuple[int, int],
    status: str,
    words: str,
):
    result = judged(package, got, reference, shape=shape)
    assert result.status == status
    assert words in result.detail


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


def test_state_without_inputs_is_not_run(package: OnnxPackage):
    recorder = Recorder(package, Fake({}), ())
    judge = InputJudge(package, Fake({}), recorder, None, BUILT_IN_POLICY)
    assert judge.judge(InputState("a case", None, "why")).status == "not run"
    result = judge.judge(InputState("a case", None, "why", exists=False))
    assert (result.status, result.detail) == ("not applicable", "why")


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
def half(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    written = write_package(tmp_path_factory.mktemp("flips") / "half")
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


def explained(half: OnnxPackage, layer: LayerParity = FLIPPED, moved: int = 2) -> str | None:
    report = ParityReport("bodies", 1, (), (layer,), True, 0, 1, (), NO_KERNELS)
    return rounding_may_explain(half, Noisy(moved), EXPECTED, report)


def test_as_few_flips_as_noise_makes_are_no_data(half: OnnxPackage):
    assert explained(half) == (
        "no data: tokens choose other heads, 2 in layer 'blocks.0.attn', where noise of one step"
        " of bfloat16 in the weights changes the choice of 2. Their routers are of plain"
        " operators, so it is unknown whether these are ties; all else agrees."
    )


def test_more_flips_than_noise_makes_are_a_failure(half: OnnxPackage):
    assert explained(half, moved=1) is None


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
def test_whatever_else_differs_is_a_failure(half: OnnxPackage, change: dict[str, object]):
    assert explained(half, replace(FLIPPED, **change)) is None  # type: ignore[arg-type]


def test_an_output_that_differs_is_a_failure(half: OnnxPackage):
    y = EXPECTED.outputs["y"]
    rule = BUILT_IN_POLICY.rule("float32")
    wrong = compare_output("y", "0", y + 1, y, rule)
    assert wrong.reason is not None
    report = ParityReport("bodies", 1, (wrong,), (FLIPPED,), True, 0, 1, (), NO_KERNELS)
    assert rounding_may_explain(half, Noisy(6), EXPECTED, report) is None


def test_in_float32_a_flip_is_a_failure(half: OnnxPackage):
    wide = replace(half, manifest=replace(half.manifest, precision="float32"))
    assert explained(wide, moved=6) is None


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_edge_package(tmp_path_factory.mktemp("right") / "package")


def sentence(right: OnnxPackage, wrong: OnnxPackage) -> str | None:
    """Compare a package with the function bodies of another, which has the same names."""
    sides = Sides(right, body_source(wrong), body_source(right))
    inputs = right.vectors[0].inputs
    return first_difference(sides, inputs, inputs)


def more(value: str) -> Fault:
    """A value is a tenth larger."""

    def plant(site: Site) -> None:
        old, new = site.under(value)
        factor = site.constant("tenth", 1.1, np.float32)
        site.insert(helper.make_node("Mul", [old, factor], [new]))

    return plant


def other_choice(site: Site) -> None:
    """The router chooses one head more."""
    (router,) = [node for node in site.graph.node if node.name == site.router.node]
    (top_k,) = [item for item in router.attribute if item.name == "top_k"]
    top_k.i += 1


def rolled_for_attention(site: Site) -> None:
    old, new = site.under(site.gates)
    site.insert(site.moved(old, np.roll(np.arange(site.heads), 1).tolist(), new))


PLACES = [
    (more("routed_0"), "the logits that the router of layer 'blocks.0.attn' reads"),
    (other_choice, "the router of layer 'blocks.0.attn'"),
    (rolled_for_attention, "the router of layer 'blocks.0.attn'"),
    (more("v_0"), "the attention of layer 'blocks.0.attn'"),
    (
        more("made_0"),
        "the logits that the router of layer 'blocks.1.attn' reads, behind layer 'blocks.0.attn'",
    ),
    (more("v_1"), "the attention of layer 'blocks.1.attn'"),
]


@sampled(3)
@pytest.mark.parametrize(("fault", "place"), PLACES, ids=range(len(PLACES)))
def test_place_of_a_fault_is_named(right: OnnxPackage, tmp_path: Path, fault: Fault, place: str):
    layer = right.manifest.layers[0]
    wrong = planted(right, tmp_path / "package", in_layer(layer, fault))
    assert sentence(right, wrong) == (
        f"With the gates of the reference fed to every layer, it first differs in {place}."
    )


def test_nothing_is_said_of_what_is_equal(right: OnnxPackage):
    assert sentence(right, right) is None


def test_nothing_is_said_of_a_run_that_fails(right: OnnxPackage, tmp_path: Path):
    def break_it(graph: onnx.GraphProto) -> None:
        (node,) = [item for item in graph.node if "x_0" in item.output]
        node.input[0] = "valid"  # of another type

    wrong = planted(right, tmp_path / "package", break_it)
    assert sentence(right, wrong) is None
