import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import moh_deploy
from moh_deploy.errors import ValidationError
from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import Description, Variant
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerImpl, LayerRun
from moh_deploy.runtime.variants import Noise
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare import judge
from moh_deploy.validate.compare.parity import ON_BODIES, compare, compare_recorded, require_equal
from moh_deploy.validate.compare.parity_report import ParityReport, combined
from moh_deploy.validate.compare.tolerances import BFLOAT16_PRODUCTS, tolerance_for
from moh_deploy.validate.reference.layer_values import LayerValues, layer_values
from moh_deploy.validate.reference.reference import RECORDED
from tests.handmade_package import MANIFEST, vectors, without_layers
from tests.handmade_package import write_package as write_handmade
from tests.kernel_library import NO_KERNELS, required_library
from tests.routed_package import write_routed
from tests.validate.mutations.faults import plant
from tests.validate.mutations.packages import write_package

PACKAGE = OnnxPackage(Path("package"), MANIFEST, ())
RUNS = (LayerRun("blocks.0.attn", "function", None),)


Change = Callable[[dict[str, Array]], object]


@dataclass
class Replay:
    """A runner that returns what it is told to."""

    results: dict[str, Array]
    layer_impl: Mapping[str, LayerImpl] = field(default_factory=lambda: {"node": "function"})
    kernels: KernelUse = NO_KERNELS

    def describe(self) -> Description:
        return Description("a runtime", self.kernels, self.layer_impl, RUNS)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self.results


def results_of(expected: VectorSet) -> dict[str, Array]:
    return {"y": expected.outputs["y"].copy(), "gates_0": expected.gates[0].copy()}


@pytest.fixture(autouse=True)
def layer_shows_its_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of these tests has no file to look into."""
    shown = (LayerValues("gates_0", attention=None, router=None),)

    def values(package: OnnxPackage) -> tuple[LayerValues, ...]:
        return shown if package.root == PACKAGE.root else layer_values(package)

    monkeypatch.setattr(judge, "layer_values", values)


def tied(margin: float = 0.0) -> VectorSet:
    """Return vectors in which token [0, 2] may take any heads, if the margin is a near-tie."""
    expected = vectors()
    margins = np.full((2, 3), np.inf, np.float32)
    margins[0, 2] = margin
    scores = np.where(expected.gates[0] != 0, 0.5, -0.5).astype(np.float32)
    scores[0, 2] = np.where(expected.gates[0][0, 2] != 0, 0.1 + np.nan_to_num(margin), 0.1)
    return replace(expected, margins=(margins,), scores=(scores,))


def report_on(change: Change, expected: VectorSet | None = None) -> ParityReport:
    expected = expected or vectors()
    results = results_of(expected)
    change(results)
    return compare(PACKAGE, Replay(results), [expected])


def nothing(results: dict[str, Array]) -> None:
    pass


def flip_a_token(results: dict[str, Array]) -> None:
    """Let token [0, 2] take a head that it had not chosen, in place of one that it had."""
    gates = results["gates_0"][0, 2]
    dropped, added = np.flatnonzero(gates)[0], np.flatnonzero(gates == 0)[0]
    gates[[dropped, added]] = gates[[added, dropped]]


def test_equal_results_are_equal():
    report = report_on(nothing)
    assert report.equal
    assert report.failure is None
    assert (report.max_abs_error, report.routing_agreement) == (0.0, 1.0)
    assert report.function_nodes == 1
    assert report.layer_runs == RUNS
    report.raise_if_unequal()


def off_by(error: float) -> Change:
    return lambda results: results["y"].__setitem__((1, 2, 3), 20.0 + error)


def set_to(name: str, at: tuple[int, ...], value: float) -> Change:
    return lambda results: results[name].__setitem__(at, value)


def all_of(value: float) -> VectorSet:
    """Return vectors of which every output has one value."""
    return replace(vectors(), outputs={"y": np.full((2, 3, 8), value, np.float32)})


def masked(value: float) -> VectorSet:
    expected = vectors()
    expected.outputs["y"][0, 0, 0] = value
    return expected


def with_gates(change: Callable[[Array], object], margin: float = math.inf) -> VectorSet:
    gates = vectors().gates[0].copy()
    change(gates)
    margins = np.full((2, 3), margin, np.float32)
    return replace(vectors(), gates=(gates,), margins=(margins,))


LEAST = float(np.finfo(np.float32).min)
GATES = "gates of layer 'blocks.0.attn' in vectors 0"


@pytest.mark.parametrize(
    ("expected", "change", "reason"),
    [
        (all_of(20.0), off_by(1.9e-3), None),
        (all_of(20.0), off_by(2.1e-3), "'y' of vectors 0 (batch=2, seq=3) differs by 0.0021 at [1"),
        (vectors(), set_to("y", (0, 0, 0), math.nan), "output 'y'"),
        (vectors(), set_to("y", (0, 0, 0), math.inf), "output 'y'"),
        (all_of(math.nan), nothing, "the reference is itself NaN"),
        (all_of(math.inf), nothing, None),
        # A mask in an output excuses no other element.
        (masked(-1e9), lambda results: results["y"].__iadd__(1), "output 'y'"),
        (masked(LEAST), lambda results: results["y"].__iadd__(1), "output 'y'"),
        (masked(-1e9), set_to("y", (0, 0, 0), -1e9 * (1 - 1e-7)), None),
        (masked(LEAST), set_to("y", (0, 0, 0), LEAST * (1 - 1e-7)), None),
        (vectors(), lambda r: r.update(y=r["y"][:, :2]), "is of shape [2, 2, 8], the reference [2"),
        (vectors(), lambda r: r.update(y=r["y"].astype(np.float64)), "is of dtype float64, the re"),
        (vectors(), lambda r: r.pop("y"), "(batch=2, seq=3): the runtime returned nothing"),
        (vectors(), lambda r: r.pop("gates_0"), "(batch=2, seq=3): the runtime returned nothing"),
        (vectors(), lambda r: r.update(gates_0=r["gates_0"][..., :3]), "is of shape [2, 3, 3]"),
        # Gates of heads that both chose, even of tokens that a near-tie excuses.
        (vectors(), lambda results: results["gates_0"].__imul__(1.01), GATES),
        (with_gates(lambda gates: gates.__setitem__((0, 0, 0), math.nan)), nothing, GATES),
        (with_gates(lambda _: None, 0.0), set_to("gates_0", (0, 2), math.nan), GATES),
        (replace(vectors(), margins=(np.zeros((2, 1)),)), nothing, "are of shape [2, 1], expected"),
    ],
)
def test_results_are_equal_within_their_tolerance(
    expected: VectorSet, change: Change, reason: str | None
):
    report = report_on(change, expected)
    if reason is None:
        assert report.reasons == ()
    else:
        assert reason in report.reasons[0]
        with pytest.raises(ValidationError, match=re.escape(reason)):
            report.raise_if_unequal()


@pytest.mark.parametrize(
    ("impl", "instruction_set", "coarse"),
    [
        ("kernel", "avx512_bf16", True),
        ("kernel", "amx_bf16", True),
        ("kernel", "avx2", False),  # computes in float32 all the same
        ("function", "avx512_bf16", False),  # was registered, but nothing runs on it
    ],
)
def test_products_of_bfloat16_are_judged_by_a_rule_of_their_own(
    impl: LayerImpl, instruction_set: str, coarse: bool
):
    expected = vectors()
    off = results_of(expected)
    off["y"] += np.float32(0.9 * tolerance_for(BFLOAT16_PRODUCTS).relative)
    use = KernelUse(Path("lib.so"), None, instruction_set, "bfloat16")
    report = compare(PACKAGE, Replay(off, {"node": impl}, use), [expected])
    assert report.equal is coarse
    near = tied(5e-3)
    flipped = results_of(expected)
    flip_a_token(flipped)
    report = compare(PACKAGE, Replay(flipped, {"node": impl}, use), [near])
    assert report.equal is coarse


def test_behind_an_excused_flip_products_of_bfloat16_may_differ_more():
    expected = tied(5e-3)
    use = KernelUse(Path("lib.so"), None, "avx512_bf16", "bfloat16")
    results = results_of(expected)
    results["y"] += np.float32(
        2 * tolerance_for(BFLOAT16_PRODUCTS).limit(np.abs(results["y"]).max())
    )
    runner = Replay(results, {"node": "kernel"}, use)
    assert not compare(PACKAGE, runner, [expected]).equal
    assert compare(PACKAGE, runner, [expected], outputs_only=True).equal
    flip_a_token(results)
    assert compare(PACKAGE, runner, [expected]).equal


def test_flipped_token_differs_and_is_described():
    report = report_on(flip_a_token)
    layer = report.layers[0]
    assert (layer.flipped_tokens, layer.excused_tokens) == (1, 0)
    assert report.routing_agreement == pytest.approx(1 - 2 / 24)
    assert "1 of 6 tokens choose other heads, unexplained; token [0, 2] chose" in report.reasons[0]
    assert "with a margin that is not known, so that it may be a tie." in report.reasons[0]


@pytest.mark.parametrize(
    ("margin", "excused"), [(0.0, True), (9e-6, True), (2e-5, False), (math.nan, False)]
)
def test_only_a_near_tie_excuses_a_flip(margin: float, excused: bool):
    report = report_on(flip_a_token, tied(margin))
    assert report.equal is excused
    assert excused or f"with margin {max(margin, 0):.3g} (rounding" in report.reasons[0]
    assert report.layers[0].excused_tokens == int(excused)
    assert report.layers[0].decisions == (20 if margin < 1e-5 else 24)
    assert report.routing_agreement == (1.0 if excused else pytest.approx(22 / 24))


def test_agreement_and_jaccard_count_every_token():
    other_values = report_on(lambda results: results["gates_0"].__imul__(1.01)).layers[0]
    assert other_values.equal_decisions == other_values.decisions
    assert other_values.gate_error > other_values.gate_tolerance
    expected = tied()
    layer = report_on(flip_a_token, expected).layers[0]
    kept = np.count_nonzero(expected.gates[0][0, 2])
    assert layer.agreement == pytest.approx(22 / 24)
    assert layer.jaccard == pytest.approx((5 + (kept - 1) / (kept + 1)) / 6)
    assert (layer.flip_margin, layer.smallest_margin) == (0.0, 0.0)


@dataclass
class Fed:
    """Variants that return what they are told to."""

    results: dict[str, Array]
    reason: str | None = None

    def why_not_forced(self) -> str | None:
        return self.reason

    def forced(self, gates: GateTypes, inner: Sequence[str] = ()) -> Replay:
        return Replay(self.results)

    def noisy(self, noise: Noise, gates: GateTypes, inner: Sequence[str] = ()) -> None:
        return None


def behind_a_near_tie(
    change: Change,
    change_forced: Change = nothing,
    why_not: str | None = None,
    margin: float = 0.0,
) -> ParityReport:
    """Compare a run in which a near-tie went the other way, and the same with the gates fed."""
    expected = tied(margin)
    results = results_of(expected)
    flip_a_token(results)
    change(results)
    forced = results_of(expected)
    forced["gates_0.computed"] = forced.pop("gates_0")
    change_forced(forced)
    return compare(PACKAGE, Replay(results), [expected], variants=Fed(forced, why_not))


def test_behind_an_explained_flip_the_run_with_the_reference_gates_is_judged():
    report = behind_a_near_tie(lambda results: results["y"].__iadd__(np.float32(0.3)))
    assert report.equal
    assert report.max_abs_error == 0.0
    assert [(output.forced, output.tolerance is None) for output in report.outputs] == [
        (True, False),
        (False, True),
    ]
    assert (report.layers[0].forced, report.layers[0].free_flips) == (True, 1)
    text = "output 'y' of vectors 0 (batch=2, seq=3), routing forced differs by 0.3"
    report = behind_a_near_tie(nothing, lambda fed: fed["y"].__iadd__(np.float32(0.3)))
    assert text in report.reasons[0]
    assert report.notes == (
        "With the reference gates fed to every layer, outputs still differ: the error is not in"
        " what could be compared of the layers; the attention of layer 'blocks.0.attn' could not"
        " be.",
    )


@pytest.mark.parametrize(
    ("name", "at", "value", "reason"),
    [
        ("y", (0, 0, 0), math.nan, ", behind a flip is not finite where the reference is."),
        ("y", (0, 0, 0), math.inf, ", behind a flip is not finite where the reference is."),
        ("gates_0", (1, 0, 0), math.nan, "'blocks.0.attn'"),
    ],
)
def test_behind_an_explained_flip_results_must_be_finite(
    name: str, at: tuple[int, ...], value: float, reason: str
):
    (found,) = behind_a_near_tie(set_to(name, at, value)).reasons
    assert reason in found


def test_first_layer_that_flips_clear_tokens_by_itself_alone_differs():
    report = behind_a_near_tie(nothing, margin=0.3)
    assert report.answer == "NOT EQUAL"
    assert "unexplained; token [0, 2] chose" in report.reasons[0]
    assert report.layers[0].wrong == ("choice",)


def test_reference_that_is_nan_itself_blames_no_layer():
    expected = tied()
    expected.outputs["y"][0, 0, 0] = math.nan
    results = results_of(expected)
    flip_a_token(results)
    forced = results_of(expected)
    forced["gates_0.computed"] = forced.pop("gates_0")
    report = compare(PACKAGE, Replay(results), [expected], variants=Fed(forced))
    assert report.notes == (
        "On 0 (batch=2, seq=3) the reference itself is not finite: it gives NaN, so these inputs"
        " tell nothing of the package.",
    )
    assert report.reasons[1] == (
        "output 'y' of vectors 0 (batch=2, seq=3), behind a flip cannot be compared: the reference"
        " is itself NaN."
    )


def test_gates_that_cannot_be_fed_are_named_and_the_looser_rule_holds():
    report = behind_a_near_tie(lambda results: results["y"].__iadd__(1), why_not="no reader")
    assert not report.equal
    assert report.notes == ("The reference gates were not fed to the model: no reader.",)


def test_gates_of_another_shape_are_not_fed():
    expected = replace(vectors(), gates=(vectors().gates[0][..., :3],))
    report = compare(PACKAGE, Replay(results_of(vectors())), [expected], variants=Fed({}))
    assert report.reasons == (
        "gates of layer 'blocks.0.attn' in vectors 0 (batch=2, seq=3) is of shape [2, 3, 4], the"
        " reference [2, 3, 3].",
    )


def test_vectors_that_are_missing_or_hold_nothing_prove_nothing():
    assert "no vectors" in compare(PACKAGE, Replay({}), []).reasons[0]
    bare = replace(vectors(), outputs={}, gates=(), margins=())
    report = compare(PACKAGE, Replay(results_of(vectors())), [bare])
    assert report.reasons == (
        "output 'y' is not in vectors 0 (batch=2, seq=3).",
        "gates of layer 'blocks.0.attn' are not in vectors 0 (batch=2, seq=3).",
    )
    assert report.routing_agreement == 0.0


def test_outputs_alone_can_be_compared_and_routing_is_then_unknown():
    bare = replace(vectors(), gates=(), margins=())
    report = compare(PACKAGE, Replay(results_of(vectors())), [bare], outputs_only=True)
    assert report.equal
    assert report.routing_agreement is None


def test_model_without_layers_agrees_in_routing():
    package = OnnxPackage(Path("package"), without_layers(), ())
    expected = vectors(with_layer=False)
    report = compare(package, Replay({"y": expected.outputs["y"]}), [expected])
    assert report.equal
    assert report.routing_agreement == 1.0


def test_combined_reports_keep_every_difference():
    good, bad = report_on(nothing), report_on(flip_a_token)
    both = combined([good, bad])
    assert both.vector_sets == 2
    assert both.reasons == bad.reasons
    assert both.reference == good.reference
    assert both.layer_runs == RUNS


def test_right_package_is_equal(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    assert compare_recorded(package).equal
    require_equal(package)
    assert moh_deploy.verify(package.root, kernels="off").notes == ()


def test_wrong_package_is_refused_with_its_path_the_layer_and_the_next_step(tmp_path: Path):
    package = write_routed(tmp_path / "package", "wrong scale")
    refused = r"package, the package to start from, is not equal"
    with pytest.raises(ValidationError, match=refused) as no:
        require_equal(package)
    assert "'blocks.1.attn'" in no.value.message
    assert "`moh-deploy bisect` finds where it diverges" in (no.value.hint or "")
    with pytest.raises(ValidationError, match=refused):
        moh_deploy.precision(package.root, to="float16", output=tmp_path / "half")
    assert not (tmp_path / "half").exists()


def with_a_wrong_body(tmp_path: Path) -> OnnxPackage:
    """Write a package whose kernels are right, and whose bodies are not."""
    required_library()
    right = write_routed(tmp_path / "right")
    model, layers = onnx.load(right.model_path), right.manifest.layers
    wrong = plant("body: scale + 1 %", model, layers, 1, right.vectors)
    return write_package(right, tmp_path / "package", wrong)


def test_wrong_function_bodies_are_refused_though_kernels_are_right(tmp_path: Path):
    package = with_a_wrong_body(tmp_path)
    kernels, bodies = compare_recorded(package).comparisons
    assert (kernels.reference, bodies.reference) == (RECORDED, RECORDED + ON_BODIES)
    assert kernels.equal
    assert not bodies.equal
    with pytest.raises(ValidationError, match=r"on function bodies: .*'blocks\.1\.attn'"):
        require_equal(package)


def test_every_command_that_relies_on_function_bodies_refuses_wrong_ones(tmp_path: Path):
    root = with_a_wrong_body(tmp_path).root
    assert [part.equal for part in moh_deploy.verify(root).comparisons] == [True, False]
    assert moh_deploy.verify(root, kernels="require").answer == "NOT EQUAL"
    with pytest.raises(ValidationError, match="on function bodies"):
        moh_deploy.precision(root, to="float16", output=tmp_path / "half")
    with pytest.raises(ValidationError, match="on function bodies"):
        moh_deploy.tune(root, choose={"all": "sparse"})


def test_function_bodies_run_once_and_on_the_smallest_batch_as_long_as_the_example(tmp_path: Path):
    required_library()
    sets = (vectors(), vectors(batch=1, seq=1), vectors(batch=3), vectors(batch=1))
    package = write_handmade(tmp_path / "package", sets=sets)
    report = compare_recorded(package)
    assert report.vector_sets == 4
    assert [part.vector_sets for part in report.comparisons] == [4, 1]
    assert {output.vectors for output in report.comparisons[1].outputs} == {"3 (batch=1, seq=3)"}
    assert not compare_recorded(package, Variant(kernels="off")).parts
