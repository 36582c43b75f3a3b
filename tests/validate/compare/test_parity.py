from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import ValidationError
from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.runtime.base import Description
from moh_deploy.runtime.kernel_use import KernelUse
from moh_deploy.runtime.layer_runs import LayerImpl, LayerRun
from moh_deploy.runtime.variants import Noise
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare import judge
from moh_deploy.validate.compare.parity import compare
from moh_deploy.validate.compare.parity_report import ParityReport, combined
from moh_deploy.validate.compare.tolerances import BFLOAT16_PRODUCTS, tolerance_for
from moh_deploy.validate.reference.layer_values import LayerValues
from tests.handmade_package import MANIFEST, vectors, without_layers
from tests.kernel_library import NO_KERNELS

PACKAGE = OnnxPackage(Path("package"), MANIFEST, ())
RUNS = (LayerRun("blocks.0.attn", "function", None),)


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
    monkeypatch.setattr(judge, "layer_values", lambda package: shown)


def tied(margin: float = 0.0) -> VectorSet:
    """Return vectors in which token [0, 2] may take any heads, if the margin is a near-tie."""
    expected = vectors()
    margins = np.full((2, 3), np.inf, np.float32)
    margins[0, 2] = margin
    scores = np.where(expected.gates[0] != 0, 0.5, -0.5).astype(np.float32)
    scores[0, 2] = np.where(expected.gates[0][0, 2] != 0, 0.1 + np.nan_to_num(margin), 0.1)
    return replace(expected, margins=(margins,), scores=(scores,))


def report_on(
    change: Callable[[dict[str, Array]], object], expected: VectorSet | None = None
) -> ParityReport:
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


def test_error_within_the_tolerance_is_equal_and_above_is_not():
    expected = replace(vectors(), outputs={"y": np.full((2, 3, 8), 20.0, np.float32)})

    def off_by(error: float) -> Callable[[dict[str, Array]], object]:
        return lambda results: results["y"].__setitem__((1, 2, 3), 20.0 + error)

    assert report_on(off_by(1.9e-3), expected).equal
    report = report_on(off_by(2.1e-3), expected)
    assert not report.equal
    assert "output 'y' of vectors 0 (batch=2, seq=3) differs by 0.0021 at [1, 2, 3]" in str(
        report.failure
    )


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


@pytest.mark.parametrize("mask", [-1e9, float(np.finfo(np.float32).min)])
def test_masks_in_an_output_excuse_no_other_element(mask: float):
    expected = vectors()
    expected.outputs["y"][0, 0, 0] = mask

    def others_off(results: dict[str, Array]) -> None:
        results["y"] += 1

    def mask_rounded(results: dict[str, Array]) -> None:
        results["y"][0, 0, 0] *= 1 - 1e-7

    assert not report_on(others_off, expected).equal
    assert report_on(mask_rounded, expected).equal


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_output_that_is_not_finite_differs(value: float):
    report = report_on(lambda results: results["y"].__setitem__((0, 0, 0), value))
    assert not report.equal
    assert "output 'y'" in report.reasons[0]


def test_nan_does_not_equal_nan():
    expected = replace(vectors(), outputs={"y": np.full((2, 3, 8), np.nan, np.float32)})
    report = report_on(nothing, expected)
    assert not report.equal
    assert math.isnan(report.max_abs_error)


def test_infinity_equals_infinity():
    expected = replace(vectors(), outputs={"y": np.full((2, 3, 8), np.inf, np.float32)})
    assert report_on(nothing, expected).equal


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda r: r.update(y=r["y"][:, :2]),
            r"output 'y' .* is of shape \[2, 2, 8\], the reference \[2, 3, 8\]",
        ),
        (lambda r: r.update(y=r["y"].astype(np.float64)), "is of dtype float64, the reference fl"),
        (lambda r: r.pop("y"), "output 'y' .*: the runtime returned nothing"),
        (lambda r: r.pop("gates_0"), r"gates of layer 'blocks\.0\.attn' .*returned nothing"),
        (
            lambda r: r.update(gates_0=r["gates_0"][..., :3]),
            r"gates of layer 'blocks\.0\.attn' .* is of shape \[2, 3, 3\]",
        ),
    ],
)
def test_results_that_do_not_fit_differ(change: Callable[[dict[str, Array]], object], reason: str):
    report = report_on(change)
    with pytest.raises(ValidationError, match=reason):
        report.raise_if_unequal()


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


def test_gates_of_chosen_heads_are_compared():
    def scaled(results: dict[str, Array]) -> None:
        results["gates_0"] *= 1.01

    report = report_on(scaled)
    assert report.routing_agreement == 1.0
    assert report.layers[0].gate_error > report.layers[0].gate_tolerance
    assert "gates of layer 'blocks.0.attn' in vectors 0" in report.reasons[0]


def test_nan_gate_differs_even_if_both_have_it():
    gates = vectors().gates[0].copy()
    gates[0, 0, 0] = np.nan
    report = report_on(nothing, replace(vectors(), gates=(gates,)))
    assert not report.equal
    assert math.isnan(report.layers[0].gate_error)


def test_margins_of_another_shape_are_no_excuse():
    report = report_on(nothing, replace(vectors(), margins=(np.zeros((2, 1)),)))
    assert "margins are of shape [2, 1], expected [2, 3]" in report.reasons[0]


def test_nan_gate_of_a_token_behind_a_near_tie_differs():
    expected = replace(vectors(), margins=(np.zeros((2, 3), np.float32),))
    report = report_on(lambda results: results["gates_0"].__setitem__((0, 2), np.nan), expected)
    assert not report.equal
    assert math.isnan(report.layers[0].gate_error)


def test_agreement_and_jaccard_count_every_token():
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
    change: Callable[[dict[str, Array]], object],
    change_forced: Callable[[dict[str, Array]], object] = nothing,
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
    assert [(one.forced, one.tolerance is None) for one in report.outputs] == [
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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_behind_an_explained_flip_outputs_must_be_finite(value: float):
    report = behind_a_near_tie(lambda results: results["y"].__setitem__((0, 0, 0), value))
    assert report.reasons == (
        "output 'y' of vectors 0 (batch=2, seq=3), behind a flip is not finite where the reference"
        " is.",
    )


def test_behind_an_explained_flip_gates_must_be_numbers():
    report = behind_a_near_tie(lambda results: results["gates_0"].__setitem__((1, 0, 0), math.nan))
    assert not report.equal
    assert "'blocks.0.attn'" in report.reasons[0]


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


def test_no_vectors_prove_nothing():
    report = compare(PACKAGE, Replay({}), [])
    assert not report.equal
    assert "no vectors" in report.reasons[0]


def test_vectors_without_gates_or_outputs_prove_nothing():
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
