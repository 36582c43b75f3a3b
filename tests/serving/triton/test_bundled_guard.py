from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moh_deploy.errors import ConfigError, ValidationError
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving import ServingSettings
from moh_deploy.serving.guard.guard_io import Control, write_control
from moh_deploy.serving.triton.bundle import write_bundle
from moh_deploy.serving.triton.bundle_json import open_bundle, read_bundle
from moh_deploy.serving.triton.check import examine_bundle
from tests.handmade_package import vectors, write_package

POLICY = """\
rungs:
- {kind: kernels, name: fast}
- {kind: package, name: plain, path: plain, measured_loss: {report: equal.json}}
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A policy with a package and a report beside it."""
    write_package(tmp_path / "policy" / "plain")
    report = {"equal": True, "accuracy": [], "comparisons": []}
    (tmp_path / "policy" / "equal.json").write_text(json.dumps(report))
    path = tmp_path / "policy" / "guard.yaml"
    path.write_text(POLICY)
    return path


def written(folder: Path, fallback: Path | None = None, **beside: Path | bool) -> Path:
    """Bundle the handmade package with paths of policy or shadow."""
    model = find_deployed(write_package(folder / "package").root)
    paths = {name: str(path) if isinstance(path, Path) else path for name, path in beside.items()}
    settings = ServingSettings("m", drill=True, **paths)  # type: ignore[arg-type]
    write_bundle(model, folder / "bundle", settings, fallback=fallback)
    return folder / "bundle"


def test_package_beside_that_verify_refuses_is_not_bundled(tmp_path: Path, policy: Path):
    write_package(tmp_path / "wrong", scale=1.01)
    wrong = tmp_path / "wrong"
    guarded: dict[str, Any] = {"guard": True, "policy": policy, "fallback": wrong}
    for beside in (guarded, {"shadow": wrong}):
        with pytest.raises(ValidationError, match="is not equal to the reference: output 'y'"):
            written(tmp_path, **beside)
        shutil.rmtree(tmp_path / "package")
    assert not (tmp_path / "bundle").exists()


def rung_of_answer(root: Path) -> str:
    """Open a bundle, compare an answer, and return which rung gave it."""
    recorded = vectors()
    served = open_bundle(root)
    reply = served.answer(recorded.inputs)
    served.close()
    np.testing.assert_allclose(reply.outputs["y"], recorded.outputs["y"], rtol=1e-5, atol=1e-6)
    return reply.rung


def test_usual_guard_answers_by_function_bodies_when_kernels_fail(tmp_path: Path):
    root = written(tmp_path, guard=True)
    assert rung_of_answer(root) == "kernels"
    write_control(root / "guard/control.json", Control(faults=("nan",)))
    assert rung_of_answer(root) == "functions"
    assert (root / "guard/audit.jsonl").read_text().count("\n") >= 1
    assert examine_bundle(root).failure is None


def test_moved_bundle_falls_back_to_the_package_that_it_brought(tmp_path: Path, policy: Path):
    root = written(tmp_path, guard=True, policy=policy)
    moved = tmp_path / "moved"
    shutil.move(root, moved)
    shutil.rmtree(policy.parent)
    assert 'rung!="fast"' in (moved / "alerts.yaml").read_text()
    assert 'storage.kserve.io/readonly: "false"' in (moved / "kserve.yaml").read_text()
    write_control(moved / "guard/control.json", Control(faults=("nan",)))
    assert rung_of_answer(moved) == "plain"


def test_fallback_takes_the_place_of_the_policys_package(tmp_path: Path, policy: Path):
    shutil.rmtree(policy.parent / "plain")
    fallback = write_package(tmp_path / "fallback").root
    root = written(tmp_path, fallback, guard=True, policy=policy)
    assert (root / "guard/package-1/manifest.json").is_file()
    write_control(root / "guard/control.json", Control(faults=("nan",)))
    assert rung_of_answer(root) == "plain"


def test_shadow_runs_beside(tmp_path: Path):
    shadow = write_package(tmp_path / "other").root
    root = written(tmp_path, shadow=shadow)
    assert read_bundle(root).settings.shadow == "shadow"
    served = open_bundle(root)
    names = {family.name for family in served.families()}
    served.close()
    assert "moh_shadow_batches_total" in names


def test_rung_whose_loss_is_not_in_its_report_is_refused(tmp_path: Path, policy: Path):
    report = {"equal": False, "accuracy": [], "comparisons": []}
    (policy.parent / "equal.json").write_text(json.dumps(report))
    with pytest.raises(ConfigError, match="does not say that the packages are equal"):
        written(tmp_path, guard=True, policy=policy)
    assert not (tmp_path / "bundle").exists()


def test_fallback_without_a_rung_for_it_is_refused(tmp_path: Path, policy: Path):
    fallback = write_package(tmp_path / "fallback").root
    with pytest.raises(ConfigError, match="needs a policy"):
        written(tmp_path, fallback, guard=True)
    policy.write_text("rungs: [{kind: kernels}]")
    with pytest.raises(ConfigError, match="has 0 rungs of kind package"):
        written(tmp_path, fallback, guard=True, policy=policy)
