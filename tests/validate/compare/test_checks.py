from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import moh_deploy
from moh_deploy.derive.precision import PrecisionReport
from moh_deploy.errors import ValidationError
from moh_deploy.package import OnnxPackage, PackageWriter, TensorInfo
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.checks import (
    Flips,
    Top1Agreement,
    check_flips,
    check_stored_weights,
    holds_classes,
    top_1_agreement,
)
from moh_deploy.validate.compare.policy import FlipsCondition, parse_condition
from tests.nightly import nightly, sampled
from tests.projected_package import write_projected
from tests.routed_package import write_routed


@pytest.mark.parametrize(
    ("condition", "flips", "verdict"),
    [
        ("flips <= 2", Flips(2, 9), "passed"),
        ("flips <= 2", Flips(3, 9), "failed"),
        ("flips <= 10 %", Flips(10, 100), "passed"),
        ("flips <= 10 %", Flips(11, 100), "failed"),
        ("flips <= 2", None, "cannot tell"),
    ],
)
def test_flips_are_judged_by_the_condition(condition: str, flips: Flips | None, verdict: str):
    asked = parse_condition(condition)
    assert isinstance(asked, FlipsCondition)
    (check,) = check_flips(flips, [asked])
    assert (check.name, check.verdict, check.asked) == (condition, verdict, True)
    assert (check.reason is None) is (verdict == "passed")


@pytest.mark.parametrize(
    ("dtype", "shape", "holds"),
    [
        ("float32", ("batch", 10), True),
        ("float16", ("batch", "seq", 500), True),
        ("float32", ("batch", "seq"), False),  # a number for each token
        ("float32", ("batch", 1), False),
        ("float32", (10,), False),
        ("float32", ("batch", 3, 32, 32), False),  # an image
        ("int64", ("batch", 10), False),
    ],
)
def test_logits_are_told_by_type_and_shape(dtype: str, shape: tuple[int | str, ...], holds: bool):
    assert holds_classes(TensorInfo("y", dtype, shape)) is holds


def test_rows_with_the_same_first_class_are_counted():
    reference = np.array([[[0, 1, 2], [3, 1, 2]], [[0, 5, 2], [0, 1, 2]]], np.float32)
    got = reference.copy()
    got[0, 0] = [9, 1, 2]
    assert top_1_agreement(got, reference) == Top1Agreement(3, 4)
    assert top_1_agreement(got[:0], reference[:0]) == Top1Agreement(0, 0)


SCALES = {
    "int8": "q_weight_0_scale",
    "static int8": "q_weight_0.int8.scales",
    "int4": "q_weight_0.int4.scales",
}


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_routed(tmp_path_factory.mktemp("stored") / "float32")


def lowered(package: OnnxPackage, to: str, output: Path, **options: Any) -> PrecisionReport:
    if "static" in to:
        rng = np.random.default_rng(8)
        recorded = package.vectors[0].inputs
        mine = {k: rng.permuted(np.tile(v, (9, 1, 1)), axis=-1) for k, v in recorded.items()}
        path = output.with_name("mine.npz")
        np.savez(path, **mine)
        options |= {"scales": "static", "inputs": [path]}
    return moh_deploy.precision(package.root, to=to.split()[-1], output=output, **options)


@pytest.fixture(scope="module")
def packages(float32: OnnxPackage, tmp_path_factory) -> dict[str, OnnxPackage]:
    root = tmp_path_factory.mktemp("stored")
    for to in SCALES:
        lowered(float32, to, root / to)
    return {to: OnnxPackage.open(root / to) for to in SCALES}


def planted(package: OnnxPackage, root: Path, name: str, change: Array) -> OnnxPackage:
    """Write the package again with another stored tensor, digests and all."""
    model = onnx.load(package.model_path)
    (tensor,) = (item for item in model.graph.initializer if item.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change, name))
    with PackageWriter(root) as writer:
        onnx.save(model, writer.path("model.onnx"))
        writer.finish(package.manifest, list(package.vectors))
    return OnnxPackage.open(root)


def tensor(package: OnnxPackage, name: str) -> Array:
    (found,) = (
        item for item in onnx.load(package.model_path).graph.initializer if item.name == name
    )
    return numpy_helper.to_array(found).copy()


@sampled(2)
@pytest.mark.parametrize("factor", [1.2, 1.05])
@pytest.mark.parametrize("to", SCALES)
def test_scale_of_one_channel_that_is_wrong_is_refused_beside_the_float32_package(
    packages: dict[str, OnnxPackage], float32: OnnxPackage, tmp_path: Path, to: str, factor: float
):
    scales = tensor(packages[to], SCALES[to])
    scales[3] *= factor
    wrong = planted(packages[to], tmp_path / "wrong", SCALES[to], scales)
    report = moh_deploy.verify(wrong.root, against=[float32.root])
    assert report.verdict == "not equal"
    (check,) = report.checks
    assert check.verdict == "failed"
    assert report.reasons[0].startswith(f"stored weights: 1 of 24 numbers of '{SCALES[to]}' differ")


def test_static_scale_of_what_a_product_reads_that_is_wrong_is_refused(
    packages: dict[str, OnnxPackage], float32: OnnxPackage, tmp_path: Path
):
    static = packages["static int8"]
    ranges = static.manifest.activation_ranges
    for number, name in enumerate(ranges):
        wrong = planted(
            static,
            tmp_path / f"{number}",
            f"{name}.int8.scale",
            tensor(static, f"{name}.int8.scale") * 1.1,
        )
        check = check_stored_weights(wrong, float32)
        assert check.verdict == "failed"
        assert f"numbers of '{name}.int8.scale' differ" in check.measured
    # The range that it was made of is no less a part of the package.
    first = next(iter(ranges))
    wider = replace(static.manifest, activation_ranges={**ranges, first: (-99.0, 99.0)})
    assert check_stored_weights(replace(static, manifest=wider), float32).verdict == "failed"


@sampled(2)
@pytest.mark.parametrize("to", SCALES)
def test_weights_that_precision_wrote_pass(
    packages: dict[str, OnnxPackage], float32: OnnxPackage, to: str
):
    report = moh_deploy.verify(packages[to].root, against=[float32.root])
    assert report.verdict == "within tolerance"
    assert [(check.name, check.verdict) for check in report.checks] == [
        ("stored weights", "passed")
    ]


def test_weight_of_one_step_less_and_one_that_stays_in_float32_are_seen(
    packages: dict[str, OnnxPackage], float32: OnnxPackage, tmp_path: Path
):
    for name in ("v_weight_1_quantized", "routed_weight_1"):
        changed = tensor(packages["int8"], name)
        changed.flat[5] += 1
        wrong = planted(packages["int8"], tmp_path / name, name, changed)
        check = check_stored_weights(wrong, float32)
        assert (check.verdict, f"numbers of '{name}' differ" in check.measured) == ("failed", True)


def test_one_unit_in_the_last_place_of_a_scale_is_another_version_of_the_quantiser(
    packages: dict[str, OnnxPackage], float32: OnnxPackage, tmp_path: Path
):
    scales = tensor(packages["int4"], SCALES["int4"])
    nearly = planted(
        packages["int4"], tmp_path / "nearly", SCALES["int4"], np.nextafter(scales, np.float32(9))
    )
    check = check_stored_weights(nearly, float32)
    assert check.verdict == "passed"


@nightly
@pytest.mark.parametrize("chosen", ["dense", "sparse", "projected"])
@pytest.mark.parametrize("to", ["int8", "int4"])
def test_how_layers_run_on_either_side_changes_no_weight(tmp_path: Path, to: str, chosen: str):
    base = write_projected(tmp_path / "base")
    moh_deploy.precision(base.root, to=to, output=tmp_path / "low")
    if (to, chosen) != ("int8", "projected"):  # there projections are products
        moh_deploy.tune(tmp_path / "low", choose={"all": chosen})
    moh_deploy.tune(base.root, choose={"all": "projected"})
    check = check_stored_weights(OnnxPackage.open(tmp_path / "low"), OnnxPackage.open(base.root))
    assert check.verdict == "passed", check


@sampled(2)
@pytest.mark.parametrize("to", SCALES)
def test_products_that_were_kept_in_float32_are_found_by_their_names(
    float32: OnnxPackage, tmp_path: Path, to: str
):
    low = lowered(float32, to, tmp_path / "low", float32=["v_1.MatMul"])
    assert low.float32_reasons["asked for"] == 1
    check = check_stored_weights(OnnxPackage.open(tmp_path / "low"), float32)
    assert check.verdict == "passed", check


def test_another_model_and_other_precisions(
    packages: dict[str, OnnxPackage], float32: OnnxPackage, tmp_path: Path
):
    check = check_stored_weights(packages["int8"], write_projected(tmp_path / "other"))
    assert check.verdict == "failed"
    assert check_stored_weights(float32, float32) is None
    assert check_stored_weights(packages["int8"], packages["int4"]) is None


def test_precision_refuses_what_was_written_wrong(
    float32: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = PackageWriter.save_model

    def damaging(writer: PackageWriter, *given: object) -> None:
        save(writer, *given)  # type: ignore[arg-type]
        model = onnx.load(writer.path("model.onnx"))
        (scales,) = (item for item in model.graph.initializer if item.name == SCALES["int8"])
        wrong = numpy_helper.to_array(scales).copy()
        wrong[3] *= 1.05
        scales.CopyFrom(numpy_helper.from_array(wrong, scales.name))
        onnx.save(model, writer.path("model.onnx"))

    monkeypatch.setattr(PackageWriter, "save_model", damaging)
    with pytest.raises(ValidationError, match="stored weights: 1 of 24 numbers of 'q_weight_0_sc"):
        moh_deploy.precision(float32.root, to="int8", output=tmp_path / "low")
    assert not (tmp_path / "low").exists()
