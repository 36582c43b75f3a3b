"""Which nodes need float32: found in models that float16 is too short for, and repaired."""

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.package import Float32Node, OnnxPackage, PackageWriter
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from moh_deploy.validate.bisection import bisection as job
from moh_deploy.validate.bisection.experiments import Experiments
from moh_deploy.validate.bisection.mixed_precision import KeptNode, MixedPrecision
from moh_deploy.validate.bisection.places import ForcedModel, NodePlace
from moh_deploy.validate.bisection.report import BisectReport
from moh_deploy.validate.compare.parity_report import ParityReport
from tests.half_packages import write_unprotected
from tests.nightly import nightly, one_in
from tests.true_manifest import finish_true
from tests.validate.bisection import strangers

Exported = Callable[[str], OnnxPackage]

SHAPE = (2, 12, 16)

SCALED = {"LargeHidden": ("blocks.1", 2.0**15), "LargeWeights": ("blocks.0", 2.0**19)}
"""Hidden numbers that float16 cannot hold; weights that it cannot."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("strangers")

    @cache
    def export(kind: str) -> OnnxPackage:
        if kind in SCALED:
            return scaled(export("Stack"), root / kind, *SCALED[kind])
        x = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
        model = strangers.build(getattr(strangers, kind))
        moh_deploy.export(model, root / kind, inputs={"x": x})
        return OnnxPackage.open(root / kind)

    return export


def scaled(package: OnnxPackage, output: Path, block: str, factor: float) -> OnnxPackage:
    """Let a perceptron's hidden numbers be larger by a power of two: the function is the same."""
    model = onnx.load(package.model_path)
    places = {node.name: node for node in model.graph.node}
    weights = {item.name: item for item in model.graph.initializer}
    for node, share in (("up.MatMul", factor), ("up.Add", factor), ("down.MatMul", 1 / factor)):
        read = places[f"{block}.{node}"].input
        weight = weights[next(name for name in read if name in weights)]
        value = numpy_helper.to_array(weight) * np.float32(share)
        weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    with PackageWriter(output) as writer:
        onnx.save(model, writer.path("model.onnx"))
        return finish_true(writer, package.manifest, package.vectors)


def nodes(report: BisectReport) -> list[str]:
    return [node.place.node for node in report.repair.mixed.nodes]


def outputs(package: OnnxPackage) -> Array:
    """What a machine computes that rounds every float16 result."""
    runner = open_runner(package, Variant(kernels="off", optimize=False, round_results=True))
    return next(iter(runner.run(package.vectors[0].inputs).values()))


def error(package: OnnxPackage) -> float:
    (expected,) = package.vectors[0].outputs.values()
    return float(np.abs(outputs(package) - expected).max())


NEEDED = {
    "LargeHidden": ["blocks.1.up.MatMul", "blocks.1.up.Add", "blocks.1.down.MatMul"],
    "LargeLogits": ["score.Add", "model.Softmax"],
}


@nightly
@pytest.mark.parametrize("kind", one_in(2, NEEDED))
def test_repaired_package_passes_with_the_nodes_that_need_float32(
    kind: str, exported: Exported, tmp_path: Path
):
    whole = exported(kind)
    half = write_unprotected(whole, tmp_path / "half")
    report = moh_deploy.bisect(half.root, reference=whole.root, output=tmp_path / "out")
    assert report.diverges
    assert report.repaired
    assert report.failure is None
    assert nodes(report) == NEEDED[kind]
    assert report.repair.mixed.smallest
    assert report.repair.weights == "the weights of the reference"
    written = OnnxPackage.open(tmp_path / "out")
    assert moh_deploy.verify(written.root).equal
    assert not moh_deploy.bisect(written.root).diverges
    assert [node.name for node in written.manifest.float32_nodes] == NEEDED[kind]
    assert written.manifest.precision == "float16"
    assert written.manifest.proof is not None
    onnx.checker.check_model(onnx.load(written.model_path), full_check=True)
    assert error(written) < 0.02
    assert not error(half) < 0.1  # or NaN


@nightly
def test_what_precision_refuses_is_written_with_more_in_float32(exported: Exported, tmp_path: Path):
    whole = exported("LargeLogits")
    with pytest.raises(ValidationError, match="not equal") as refused:
        moh_deploy.precision(whole.root, to="float16", output=tmp_path / "half")
    assert "moh-deploy bisect DIR --to float16|bfloat16 --output DIR" in (refused.value.hint or "")
    report = moh_deploy.bisect(whole.root, to="float16", output=tmp_path / "half")
    assert report.package == whole.root
    assert nodes(report) == ["score.Add"]  # Softmax stays in float32 by itself
    assert report.passes_verify is False
    assert report.repair.weights == "the weights of the reference"
    assert moh_deploy.verify(tmp_path / "half").equal


@nightly
def test_outliers_in_the_residual_stream_are_kept_in_float32(exported: Exported, tmp_path: Path):
    """No value overflows, and the noise floor is low: sums lose what is small beside thousands.
    ONNX Runtime computes these sums in float32: `verify` does not see it, `precision` does."""
    whole = exported("Outliers")
    with pytest.raises(ValidationError, match="That is with every result rounded"):
        moh_deploy.precision(whole.root, to="float16", output=tmp_path / "half")
    report = moh_deploy.bisect(whole.root, to="float16", output=tmp_path / "out")
    assert report.diverges
    assert report.passes_verify
    assert "`verify` passes here" in report.notes[0]
    assert set(nodes(report)) >= {"blocks.0.Add#2", "blocks.1.Add", "blocks.1.Add#2"}
    assert {node.rpartition(".")[2].partition("#")[0] for node in nodes(report)} == {"Add"}
    assert report.repair.flops_share == 0.0
    assert report.repair.mixed.nodes[1].reason.startswith(
        "its numbers reach 6e+03, where float16 has steps of 4"
    )
    assert not moh_deploy.bisect(tmp_path / "out").diverges


@nightly
def test_inputs_that_leave_the_recorded_range_are_bisected_too(exported: Exported, tmp_path: Path):
    """Recorded inputs fit: a hundred times larger ones reach numbers that float16 has not."""
    whole = exported("Stack")
    moh_deploy.precision(whole.root, to="float16", output=tmp_path / "half")
    assert not moh_deploy.bisect(tmp_path / "half").diverges
    np.savez(tmp_path / "large.npz", **{k: v * 3e4 for k, v in whole.vectors[0].inputs.items()})
    report = moh_deploy.bisect(
        tmp_path / "half", inputs=[tmp_path / "large.npz"], output=tmp_path / "out"
    )
    assert "large" in report.reference
    assert report.repaired
    assert report.passes_verify is False
    assert not moh_deploy.bisect(tmp_path / "out", inputs=[tmp_path / "large.npz"]).diverges


@nightly
@pytest.mark.parametrize("to", one_in(2, ["float16", "bfloat16"]))
def test_nothing_diverges_in_a_good_package(to: str, exported: Exported, tmp_path: Path):
    moh_deploy.precision(exported("Stack").root, to=to, output=tmp_path / "half")
    report = moh_deploy.bisect(tmp_path / "half", output=tmp_path / "out")
    assert not report.diverges
    assert report.sentence.startswith("nothing diverges")
    assert not (tmp_path / "out").exists()


@nightly
def test_target_below_what_verify_allows_is_met(exported: Exported, tmp_path: Path):
    whole = exported("Stack")
    moh_deploy.precision(whole.root, to="float16", output=tmp_path / "half")
    (largest,) = (np.abs(output).max() for output in whole.vectors[0].outputs.values())
    before = error(OnnxPackage.open(tmp_path / "half")) / largest
    report = moh_deploy.bisect(
        tmp_path / "half",
        reference=whole.root,
        output=tmp_path / "out",
        target=0.7 * before,
        max_runs=20,
    )
    assert report.repaired
    assert not moh_deploy.bisect(tmp_path / "out", target=0.7 * before).diverges


@nightly
def test_what_only_moves_an_input_rounds_it_too(exported: Exported, tmp_path: Path):
    whole = exported("Turned")
    half = write_unprotected(whole, tmp_path / "half", stays=lambda _: False)
    report = moh_deploy.bisect(half.root, reference=whole.root, target=1e-5, max_runs=2)
    assert report.why_no_repair is None
    assert "model.Transpose" in nodes(report)


@nightly
def test_target_below_the_rounding_of_float32_accuses_nobody(exported: Exported, tmp_path: Path):
    whole = exported("Stack")
    half = write_unprotected(whole, tmp_path / "half")
    report = moh_deploy.bisect(whole.root, target=1e-9)
    assert report.divergence.cause == "float32"
    assert report.sentence.endswith("that may be rounding, or the graph.")
    alone = moh_deploy.bisect(half.root, target=1e-9)
    assert alone.why_no_repair.startswith("In float32 it is ")
    with pytest.raises(ConfigError, match=r"off by more than the target 1e-09 itself, and by no"):
        moh_deploy.bisect(half.root, target=1e-9, reference=whole.root)


@nightly
@pytest.mark.parametrize(
    ("allowed", "kernels", "why"),
    [
        (True, "auto", "rounding of float32 alone may be above the target."),
        (False, "auto", "kernels or optimisations are wrong as well. Try --kernels off."),
        (False, "off", "wrong as ONNX Runtime runs it: optimisations are wrong as well."),
    ],
)
def test_why_no_nodes_are_enough_is_told_apart(
    allowed: bool,
    kernels: Kernels,
    why: str,
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Right as it is written with every node in float32, and not as it is run."""
    whole = exported("Stack")
    half = write_unprotected(whole, tmp_path / "half")
    monkeypatch.setattr(job.RepairJob, "mixed_precision", lambda _: None)
    monkeypatch.setattr(Experiments, "allowed", lambda *_: allowed)
    report = moh_deploy.bisect(half.root, reference=whole.root, target=1e-5, kernels=kernels)
    assert (report.why_no_repair or "").endswith(why)
    monkeypatch.setattr(job, "ranked_nodes", lambda *_: [])
    report = moh_deploy.bisect(half.root, reference=whole.root, target=1e-5, kernels=kernels)
    assert (report.why_no_repair or "").endswith("what only moves numbers are in float16.")


@nightly
def test_bfloat16_is_bisected_too(exported: Exported, tmp_path: Path):
    whole = exported("LargeLogits")
    low = write_unprotected(whole, tmp_path / "low", "bfloat16")
    report = moh_deploy.bisect(low.root, reference=whole.root, output=tmp_path / "out")
    assert {"score.Add", "model.Softmax"} <= set(nodes(report))
    assert OnnxPackage.open(tmp_path / "out").manifest.precision == "bfloat16"
    assert moh_deploy.verify(tmp_path / "out").equal


@nightly
def test_runs_are_bounded_and_what_they_found_passes(exported: Exported, tmp_path: Path):
    half = write_unprotected(exported("LargeLogits"), tmp_path / "half")
    report = moh_deploy.bisect(half.root, output=tmp_path / "out", max_runs=4)
    assert not report.repair.mixed.smallest
    assert report.repair.mixed.trials == 4
    assert set(NEEDED["LargeLogits"]) <= set(nodes(report))
    assert report.repair.weights == "the weights in float16, whose rounding stays"
    assert moh_deploy.verify(tmp_path / "out").equal


@nightly
def test_weights_that_float16_cannot_hold_are_taken_from_the_reference(
    exported: Exported, tmp_path: Path
):
    whole = exported("LargeWeights")
    half = write_unprotected(whole, tmp_path / "half")
    alone = moh_deploy.bisect(half.root)
    assert alone.repair is None
    assert "give that as --reference" in (alone.why_no_repair or "")
    report = moh_deploy.bisect(half.root, reference=whole.root, output=tmp_path / "out")
    assert report.repaired
    assert "blocks.0.up.MatMul" in nodes(report)


@nightly
def test_set_that_verify_refuses_is_searched_again_by_verify(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    half = write_unprotected(exported("LargeLogits"), tmp_path / "half")
    parity, asked = job.RepairJob._parity, []

    def verifying(repair: job.RepairJob, model: ForcedModel) -> ParityReport | SimpleNamespace:
        asked.append(model)
        return parity(repair, model) if len(asked) > 1 else SimpleNamespace(equal=False)

    monkeypatch.setattr(job.RepairJob, "_parity", verifying)
    report = moh_deploy.bisect(half.root, max_runs=4)
    # The first set, at least one trial of the second search, and what was found.
    assert len(asked) > 2
    assert report.repair.mixed.trials == 8


def test_nodes_of_an_earlier_repair_stay_listed(exported: Exported):
    earlier = (Float32Node("a.Add", "before"), Float32Node("b.Mul", "before"))
    manifest = replace(exported("Stack").manifest, layers=(), float32_nodes=earlier)
    found = KeptNode(NodePlace("a.Add", "Add", "a", "sum"), "now")
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    made = job._manifest(manifest, model, MixedPrecision((found,), smallest=True, trials=3))
    assert made.float32_nodes == (Float32Node("b.Mul", "before"), Float32Node("a.Add", "now"))


@nightly
def test_full_disk_of_temporary_files_is_named(exported: Exported, tmp_path: Path, monkeypatch):
    half = write_unprotected(exported("LargeLogits"), tmp_path / "half")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("moh_deploy.graph.float32_form.save_model", fill)
    with pytest.raises(PackageError, match=f"disk full while writing {scratch}/moh-deploy-bisect"):
        moh_deploy.bisect(half.root)
    assert not any(scratch.iterdir())


@nightly
def test_interrupted_repair_leaves_nothing(exported: Exported, tmp_path: Path, monkeypatch):
    whole = exported("LargeLogits")
    half = write_unprotected(whole, tmp_path / "half")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with monkeypatch.context() as patched:

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(job.PackageWriter, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            moh_deploy.bisect(half.root, output=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "scratch"]
    assert not any(scratch.iterdir())
