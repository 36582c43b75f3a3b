"""Exported models of every form are pruned, and go on through the other commands."""

from __future__ import annotations

from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.derive.with_top_k import with_top_k
from moh_deploy.package import OnnxPackage
from tests.cuda.trt.packages import FORMS, export

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module", params=["digits", "dit", "llama", "vit"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(FORMS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("keep", ["30%", "60%", "100%"])
def test_pruned_model_is_the_whole_one_with_gates_fed(package: Path, tmp_path: Path, keep: str):
    report = moh_deploy.prune(package, tmp_path / "pruned", keep=keep)
    assert report.parity.equal
    assert all(layer.fixed.is_cut for layer in report.layers)
    # With all heads only routers go, and those of the LLaMA form have no weights.
    if keep != "100%":
        assert report.after.parameters < report.before.parameters
    pruned = OnnxPackage.open(tmp_path / "pruned")
    assert not any(name.endswith("MoHRouter") for name in pruned.manifest.ops)


def test_pruned_package_goes_on_through_other_commands(package: Path, tmp_path: Path):
    moh_deploy.prune(package, tmp_path / "pruned", keep="60%")
    moh_deploy.verify(tmp_path / "pruned", kernels="off").raise_if_unequal()
    moh_deploy.inline(tmp_path / "pruned", output=tmp_path / "pruned.onnx")
    moh_deploy.precision(tmp_path / "pruned", to="float16", output=tmp_path / "half")
    assert OnnxPackage.open(tmp_path / "half").manifest.made is not None


def test_every_head_may_be_open(package: Path, tmp_path: Path):
    made = with_top_k(package, tmp_path / "made", top_k=None)
    assert all(layer.active_share == 1.0 for layer in made.manifest.layers)
