"""Bisecting names the layer and the node of a planted fault, and nothing where nothing is wrong."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.onnxruntime import session as onnxruntime
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from tests.half_packages import write_unprotected
from tests.handmade_package import vectors, write_package
from tests.nightly import nightly, one_in, sampled
from tests.routed_package import Fault, write_routed

FAULTS = [fault for fault in get_args(Fault) if fault != "other tie order"]

NODE = {
    "swapped shared and routed heads": ("gates_1", "it reads 'routed_gates_1' (of Mul)"),
    "wrong scale": ("y_1", "attribute scale is 0.55, the reference's 0.5"),
    "softmax after top-k": ("kept_1", "it is Softmax, in the reference Mul"),
    "missing renormalisation": ("normal_1", "it reads 'one', the reference 'sum_1' (of ReduceSum)"),
    "one gate off by 1 %": ("gates_1", "it is Mul, in the reference Concat"),
    "RoPE before the router": ("logits_1", "it reads 'q_rope_1' (of Add), the reference 'q_1'"),
    "dropped mask": ("y_1", "weight 'no_mask', in the reference 'mask', differs by up to 1 "),
    "float16 scores": ("scores_1", "it reads 'rounded_1' (of Cast), the reference 'logits_1'"),
    "top_k off by one": ("best_1", "weight 'k+1', in the reference 'k', differs"),
    "stale weights": ("projected_1", "weight 'o_weight_1' differs by up to 0.05 of its largest"),
}
"""What the node makes, and what is said of it."""


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_routed(tmp_path_factory.mktemp("routed") / "right").root


@sampled(5)
@pytest.mark.parametrize("fault", one_in(2, FAULTS))
def test_reference_names_the_node_and_what_is_different_about_it(
    fault: Fault, right: Path, tmp_path: Path
):
    write_routed(tmp_path / "package", fault)
    found = moh_deploy.bisect(tmp_path / "package", reference=right, kernels="off").divergence
    assert found.cause == "graph"
    assert found.first.place.module == "blocks.1.attn"
    value, difference = NODE[fault]
    assert found.first.place.value == value
    assert found.first.before < 1e-6 < found.first.behind
    assert difference in found.differences[0]


@sampled(4)
@pytest.mark.parametrize("fault", one_in(2, FAULTS))
def test_without_a_reference_it_is_among_few_suspects(fault: Fault, tmp_path: Path):
    package = write_routed(tmp_path / "package", fault)
    report = moh_deploy.bisect(package.root, kernels="off")
    found = report.divergence
    assert (found.cause, found.node) == ("graph", None)
    assert found.modules[0] == "blocks.1.attn"
    assert NODE[fault][0] in {place.value for place in found.suspects}
    assert len(found.suspects) < 25  # of more than a hundred
    assert report.failure is not None
    assert "'blocks.1.attn'" in str(report.failure)


@pytest.mark.parametrize("tied", [False, True])
def test_nothing_diverges_in_a_right_package(tied: bool, tmp_path: Path):
    """Another order of ties is legal: what differs behind it is no divergence."""
    write_routed(tmp_path / "package", "other tie order" if tied else None, tied=tied)
    report = moh_deploy.bisect(tmp_path / "package", kernels="off")
    assert not report.diverges
    assert report.failure is None
    assert report.sentence == "nothing diverges from the vectors recorded from the original model."


def test_fault_in_half_precision_is_a_fault_of_the_graph(right: Path, tmp_path: Path):
    wrong = write_routed(tmp_path / "wrong", "stale weights")
    half = write_unprotected(wrong, tmp_path / "half", stays=is_no_product)
    report = moh_deploy.bisect(half.root, reference=right, kernels="off", output=tmp_path / "out")
    assert report.divergence.cause == "graph"
    assert report.divergence.first.place.value == "projected_1"
    assert report.why_no_repair == (
        "In float32 it is wrong as well, so no choice of nodes makes it right."
    )
    assert report.failure is not None
    assert not (tmp_path / "out").exists()


def is_no_product(node: object) -> bool:
    return getattr(node, "op_type", "") not in ("MatMul", "MoHAttention")


@sampled(2)
@pytest.mark.parametrize("cause", ["kernel", "optimisation"])
def test_runtime_that_computes_something_else_is_told_apart(cause: str, right: Path, monkeypatch):
    """Sessions that compute something else in one node, on kernels or where they may optimise."""

    def breaking(variant: Variant, graph: onnx.GraphProto) -> None:
        if variant.kernels != "off" if cause == "kernel" else variant.optimize:
            node = next(item for item in graph.node if item.name == "attn_1")
            scale = next(item for item in node.attribute if item.name == "scale")
            scale.f *= 1.2

    def broken_session(source: OnnxPackage, variant: Variant) -> Runner:
        bodies = replace(variant, kernels="off")
        return onnxruntime.open_session(source, bodies.edited(partial(breaking, variant)))

    monkeypatch.setattr("moh_deploy.runtime.models.open_session", broken_session)
    found = moh_deploy.bisect(right).divergence
    assert found.cause == cause
    if cause == "kernel":
        assert (found.node.node, found.node.module) == ("attn_1", "blocks.1.attn")
    else:
        assert "attn_1" in {place.node for place in found.suspects}


def test_reference_that_is_wrong_itself_is_refused(tmp_path: Path):
    wrong = write_routed(tmp_path / "wrong", "wrong scale").root
    with pytest.raises(ConfigError, match=r"wrong differs from the recorded runs of .*wrong as"):
        moh_deploy.bisect(wrong, reference=wrong, kernels="off")


@nightly
def test_reference_in_half_precision_is_refused(right: Path, tmp_path: Path):
    half = moh_deploy.precision(right, to="float16", output=tmp_path / "half").package
    with pytest.raises(ConfigError, match="half is in float16, expected a package in float32"):
        moh_deploy.bisect(right, reference=half)


def test_engine_is_refused_with_what_to_do(tmp_path: Path):
    manifest = {"format_version": 1, "backend": "tensorrt", "key": "0"}
    (tmp_path / "engine.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="is an engine") as refused:
        moh_deploy.bisect(tmp_path)
    assert "Bisect the package that it was built from" in (refused.value.hint or "")


@nightly
def test_inputs_of_a_float32_package_need_a_reference(right: Path, tmp_path: Path):
    np.savez(tmp_path / "in.npz", x=OnnxPackage.open(right).vectors[0].inputs["x"])
    wrong = write_routed(tmp_path / "wrong", "wrong scale").root
    with pytest.raises(ConfigError, match="on other inputs than the recorded ones is not known"):
        moh_deploy.bisect(wrong, inputs=[tmp_path / "in.npz"])
    report = moh_deploy.bisect(wrong, reference=right, inputs=[tmp_path / "in.npz"])
    assert report.reference.endswith("and the reference on in.npz (batch=3)")
    assert report.divergence.differences == ("attribute scale is 0.55, the reference's 0.5",)


@nightly
def test_package_that_is_lowered_first_is_its_own_reference(right: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="which is its own reference: give one of two"):
        moh_deploy.bisect(right, to="float16", reference=right)
    with pytest.raises(ConfigError, match="to is 'int3', expected float16, bfloat16 or int8"):
        moh_deploy.bisect(right, to="int3")
    half = moh_deploy.precision(right, to="float16", output=tmp_path / "half").package
    with pytest.raises(ConfigError, match="half is in float16, expected a package in float32"):
        moh_deploy.bisect(half, to="float16")


def test_package_without_vectors_is_refused(tmp_path: Path):
    package = write_package(tmp_path / "package", sets=())
    with pytest.raises(ValidationError, match="there are no vectors to compare with"):
        moh_deploy.bisect(package.root)


def test_flip_that_cannot_be_told_accuses_nobody(tmp_path: Path):
    write_routed(tmp_path / "package", "other tie order", tied=True, has_scores=False)
    with pytest.raises(ValidationError, match=r"inconclusive: gates of layer 'blocks\.1\.attn'"):
        moh_deploy.bisect(tmp_path / "package", kernels="off")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.0}, "target is 0.0, expected a share between 0 and 1"),
        ({"target": float("nan")}, "target is nan, expected a share"),
        ({"vectors": 0}, "vectors is 0, expected at least 1"),
        ({"vectors": 2}, "vectors is 2, but there are 1 recorded runs to compare with"),
        ({"max_runs": 1}, "max_runs is 1, expected at least 2"),
        ({"output": "out"}, "right is in float32: there is nothing to put into"),
        ({"output": "mine"}, "mine"),
        ({"reference": "other"}, r"has the MoH layers 'blocks.0.attn', .* another model"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, object], message: str, right: Path, tmp_path: Path
):
    write_package(tmp_path / "other")
    (tmp_path / "mine").write_text("mine")
    placed = {k: tmp_path / v if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises((ConfigError, PackageError), match=message):
        moh_deploy.bisect(right, **placed)


def test_model_without_layers_is_bisected_by_its_outputs(tmp_path: Path):
    package = write_package(tmp_path / "package", with_layer=False, scale=1.5)
    found = moh_deploy.bisect(package.root).divergence
    assert [place.value for place in found.suspects] == ["y"]


def test_target_counts_for_a_package_in_float32_too(tmp_path: Path):
    package = write_package(tmp_path / "package", with_layer=False, scale=1.00002)
    assert not moh_deploy.bisect(package.root).diverges
    report = moh_deploy.bisect(package.root, target=1e-6)
    assert report.diverges
    assert report.passes_verify


def test_several_vector_sets_count(tmp_path: Path):
    """The second set alone is wrong: its outputs are not what the model computes."""
    right, wrong = vectors(batch=2), vectors(batch=3)
    wrong.outputs["y"] = np.asarray(wrong.outputs["y"] * 1.1)
    package = write_package(tmp_path / "package", sets=(right, wrong))
    assert moh_deploy.bisect(package.root).diverges
    assert not moh_deploy.bisect(package.root, vectors=1).diverges


# `bisect --to int8`: which products have to stay in float32.


TARGET = 0.0175  # one product is enough for it


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_routed(tmp_path_factory.mktemp("bisect") / "package")


def answer(root: Path) -> Array:
    """Return what a package makes of its recorded inputs."""
    package = OnnxPackage.open(root)
    return open_runner(package).run(package.vectors[0].inputs)["y"]


def test_package_that_is_right_in_int8_needs_nothing(package: OnnxPackage):
    report = moh_deploy.bisect(package.root, to="int8")
    assert not report.diverges
    assert report.precision == "int8"
    assert report.notes == (
        "`moh-deploy precision DIR --to int8 --output DIR` writes it as it is.",
    )


def test_products_that_have_to_stay_are_found_and_precision_takes_them(
    package: OnnxPackage, tmp_path: Path
):
    output = tmp_path / "repaired"
    report = moh_deploy.bisect(package.root, to="int8", target=TARGET, output=output)
    assert report.divergence.cause == "precision"
    node = report.divergence.node
    assert "quant" not in node.node  # none of the several that an integer product is
    mixed = report.repair.mixed
    assert mixed.smallest
    kept = [item.place.node for item in mixed.nodes]
    assert 0 < len(kept) < 12  # of 12 products in int8
    assert moh_deploy.verify(output).equal
    assert OnnxPackage.open(output).manifest.precision == "int8"
    assert [
        float32_node.name for float32_node in OnnxPackage.open(output).manifest.float32_nodes
    ] == kept
    # By hand it is the same package, and with one of the products in int8 it is another.
    for names, name in ((kept, "by_hand"), (kept[1:], "fewer")):
        moh_deploy.precision(package.root, to="int8", float32=names, output=tmp_path / name)
    np.testing.assert_array_equal(answer(tmp_path / "by_hand"), answer(output))
    assert not np.array_equal(answer(tmp_path / "fewer"), answer(output))
    assert all(f"--float32 {name}" in report.notes[-1] for name in kept)


@pytest.mark.nightly
def test_target_that_no_choice_of_products_meets_is_told(package: OnnxPackage):
    report = moh_deploy.bisect(package.root, to="int8", target=1e-9)
    assert report.repair is None
    assert "float32" in str(report.why_no_repair)


def test_model_without_products_is_refused(tmp_path: Path):
    bare = write_package(tmp_path / "package")
    with pytest.raises(ConfigError, match="no product that could be in int8"):
        moh_deploy.bisect(bare.root, to="int8")
    with pytest.raises(ConfigError, match="float16, bfloat16 or int8"):
        moh_deploy.bisect(bare.root, to="int3")
