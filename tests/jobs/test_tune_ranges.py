"""Packages whose layers are run in several ways, depending on the sizes of the inputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import moh_deploy
from moh_deploy.backends.onnxruntime import open_session
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.json_text import to_json_text
from moh_deploy.npz import write_npz
from moh_deploy.package import OnnxPackage, SizeRange
from tests.handmade_package import vectors, write_package
from tests.kernel_library import required_library, without_library
from tests.projected_package import write_projected
from tests.report.test_reports import text_of
from tests.two_layers import write_two_layers

FIRST = "blocks.0.attn"


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_two_layers(tmp_path / "package")


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def with_zero_dense_bodies(package: OnnxPackage) -> OnnxPackage:
    """Let the bodies of moh.dense return 0: what ran shows in the outputs."""
    model = onnx.load(package.model_path)
    for function in model.functions:
        if function.domain == "moh.dense":
            last = next(one for one in function.node if one.output[0] == function.output[0])
            last.output[0] = "not returned"
            zero = onnx.helper.make_node("Sub", ["not returned"] * 2, [function.output[0]])
            function.node.append(zero)
    onnx.save(model, package.model_path)
    return OnnxPackage.open(package.root, check_digests=False)


@pytest.mark.parametrize("kernels", ["off", "require"])
@pytest.mark.parametrize(
    ("where", "dense", "sparse"),
    [
        ("seq<=4", [(1, 4), (7, 1)], [(1, 5), (2, 9)]),
        ("batch*seq<=8", [(2, 4), (8, 1)], [(3, 3), (9, 1)]),
    ],
)
def test_each_branch_runs_at_its_sizes(
    package: OnnxPackage,
    kernels: str,
    where: str,
    dense: list[tuple[int, int]],
    sparse: list[tuple[int, int]],
):
    if kernels == "require":
        required_library()
    moh_deploy.tune(package.root, choose={f"{FIRST}[{where}]": "dense"})
    runner = open_session(with_zero_dense_bodies(OnnxPackage.open(package.root)), kernels=kernels)
    for expected, sizes in ((True, dense), (False, sparse)):
        for batch, seq in sizes:
            outputs = runner.run(vectors(batch=batch, seq=seq).inputs)
            assert (not outputs["y"].any()) == expected, (batch, seq)


@pytest.mark.parametrize("kernels", ["off", "auto"])
def test_package_equals_the_original_at_sizes_on_both_sides(tmp_path: Path, kernels: str):
    sets = (vectors(), vectors(batch=1, seq=9), vectors(batch=5, seq=1))
    package = write_package(tmp_path / "package", sets=sets)
    moh_deploy.tune(package.root, choose={"all[seq<=3]": "dense", "all": "sparse"})
    report = moh_deploy.verify(package.root, kernels=kernels)
    assert report.equal
    assert report.vector_sets == 3
    assert report.layer_runs[0].by_size == "dense if seq<=3, else sparse"


@pytest.mark.parametrize("kernels", ["off", "require"])
def test_projections_depend_on_sizes_too(tmp_path: Path, kernels: str):
    if kernels == "require":
        required_library()
    package = write_projected(tmp_path / "package")
    moh_deploy.tune(package.root, choose={"all[seq<=3]": "dense", "all": "projected"})
    assert moh_deploy.verify(package.root, kernels=kernels).equal
    (run,) = moh_deploy.inspect(package.root, kernels=kernels).layer_runs
    expected = "kernel" if kernels == "require" else "function"
    assert (run.runs_as, run.projections_run_as) == (expected, expected)


def test_package_without_kernels_runs_wherever_onnx_runtime_does(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    moh_deploy.tune(package.root, choose={"all[seq<=3]": "dense"})
    without_library(tmp_path / "none", monkeypatch)
    assert moh_deploy.verify(package.root).equal


def test_gates_are_read_as_ever(package: OnnxPackage):
    moh_deploy.tune(package.root, choose={"all[seq<=3]": "dense"})
    package = OnnxPackage.open(package.root)
    runner = open_session(package, extra_outputs=package.gate_names)
    for seq in (3, 5):
        one = vectors(seq=seq)
        np.testing.assert_allclose(runner.run(one.inputs)["gates_0"], one.gates[0], atol=1e-6)


def test_users_inputs_are_verified_at_all_sizes(package: OnnxPackage, tmp_path: Path):
    moh_deploy.tune(package.root, choose={"all[seq<=3]": "dense"})
    for seq in (2, 6):
        write_npz(tmp_path / f"{seq}.npz", vectors(seq=seq).inputs)
    assert moh_deploy.verify(package.root, inputs=sorted(tmp_path.glob("*.npz"))).equal


def test_manifest_holds_ranges_and_taking_them_back_leaves_nothing(package: OnnxPackage):
    moh_deploy.tune(package.root, choose={"all": "sparse"})
    before = files(package.root)
    moh_deploy.tune(package.root, choose={f"{FIRST}[batch*seq<=8]": "dense"})
    manifest = OnnxPackage.open(package.root).manifest
    assert manifest.layers[0].ranges == (SizeRange("batch*seq", 8, "dense"),)
    assert manifest.layers[1].ranges == ()
    assert manifest.ops["moh.dense::MoHAttention"] == 1
    moh_deploy.tune(package.root, choose={"all": "sparse"})
    assert files(package.root) == before


def test_manifest_written_before_there_were_ranges_is_read(package: OnnxPackage):
    path = package.root / "manifest.json"
    content = json.loads(path.read_text())
    for layer in content["layers"]:
        del layer["ranges"]
    path.write_text(json.dumps(content))
    assert OnnxPackage.open(package.root).manifest == package.manifest


def test_range_of_no_dimension_of_the_package_is_refused(package: OnnxPackage):
    with pytest.raises(ConfigError, match="no dynamic dimension 'sec', only batch, seq") as refused:
        moh_deploy.tune(package.root, choose={"all[sec<=3]": "dense"})
    assert refused.value.hint == "Did you mean 'seq'?"
    path = package.root / "manifest.json"
    content = json.loads(path.read_text())
    content["layers"][0]["ranges"] = [{"size": "batch*sec", "at_most": 3, "choice": "dense"}]
    path.write_text(json.dumps(content))
    with pytest.raises(PackageError, match="has a range of 'batch\\*sec', but 'sec' is no dynamic"):
        OnnxPackage.open(package.root)


def test_model_that_switches_elsewhere_than_the_manifest_says_is_refused(package: OnnxPackage):
    moh_deploy.tune(package.root, choose={f"{FIRST}[seq<=3]": "dense"})
    model = package.model_path.read_bytes()
    moh_deploy.tune(package.root, choose={f"{FIRST}[seq<=4]": "dense"})
    package.model_path.write_bytes(model)
    changed = OnnxPackage.open(package.root, check_digests=False)
    with pytest.raises(
        PackageError, match=r"is dense if seq<=4, else sparse in .* if seq<=3, else"
    ):
        open_session(changed, kernels="off")


def test_reports_show_ranges(package: OnnxPackage):
    required_library()
    report = moh_deploy.tune(package.root, choose={f"{FIRST}[seq<=2]": "dense"})
    assert "dense if seq<=2, else sparse" in text_of(report)
    first = json.loads(to_json_text(report.to_json()))["layers"][0]
    assert first["ranges"] == [{"size": "seq", "at_most": 2, "choice": "dense"}]
    inspected = moh_deploy.inspect(package.root)
    assert "kernel; dense if seq<=2, else sparse" in text_of(inspected)
    shown = json.loads(to_json_text(inspected.to_json()))["layers"][0]
    assert shown["ranges"] == first["ranges"]
    assert shown["predicted_gain"] > 1.0, "sparse at the example's sizes"


def test_package_with_ranges_is_measured_one_choice_at_a_time(package: OnnxPackage):
    """What was chosen before does not show in what is measured."""
    from tests.jobs.test_tune import tuned

    moh_deploy.tune(package.root, choose={"all[seq<=2]": "dense"})
    report = tuned(package)
    assert [layer.choice for layer in report.layers] == ["dense", "sparse"]
    assert all(not layer.ranges for layer in report.layers)
