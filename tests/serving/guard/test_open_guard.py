import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import BackendError, ConfigError, PackageError, ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.guard.guard_io import Control, write_control
from moh_deploy.serving.served_model import ServedModel, open_served
from moh_deploy.serving.settings import ServingSettings
from tests.damaged_library import write_damaged_library
from tests.handmade_package import vectors, write_package
from tests.kernel_library import needs_library, without_library

LADDER = """
rungs:
- {kind: kernels}
- {kind: functions}
- {kind: dense, opened: first use}
- kind: package
  name: plain
  path: plain
  measured_loss: {report: report.json, metric: top-1, loss: 0.02}
cool_down: {first_s: 0.01}
probes: 1
"""


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    metric = {"metric": "top-1", "better": "higher", "reference": 0.975, "package": 0.955}
    content = {"equal": False, "accuracy": [metric], "comparisons": []}
    (tmp_path / "report.json").write_text(json.dumps(content))
    write_package(tmp_path / "plain", with_layer=False)
    return write_package(tmp_path / "package")


@pytest.fixture
def served(package: OnnxPackage, tmp_path: Path) -> Iterator[ServedModel]:
    (tmp_path / "policy.yaml").write_text(LADDER)
    settings = ServingSettings(
        "m",
        guard=True,
        policy=str(tmp_path / "policy.yaml"),
        audit_log=str(tmp_path / "audit.jsonl"),
        control=str(tmp_path / "control.json"),
        drill=True,
    )
    served = open_served(PackageDir(package.root), settings)
    yield served
    served.close()


@needs_library
def test_every_rung_of_a_policy_answers(served: ServedModel, tmp_path: Path):
    recorded = vectors()
    for rung in ("kernels", "functions", "dense", "plain"):
        write_control(tmp_path / "control.json", Control(pin=rung))
        while served.answer(recorded.inputs).rung != rung:
            pass  # the file is looked at ten times a second
        y = served.answer(recorded.inputs).outputs["y"]
        expected = recorded.inputs["x"] if rung == "plain" else recorded.outputs["y"]
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@needs_library
def test_metrics_name_the_rung_that_serves(served: ServedModel):
    found = {family.name: family for family in served.families()}
    modes = {sample.labels["rung"]: sample.value for sample in found["moh_mode"].samples}
    assert modes == {"kernels": 1, "functions": 0, "dense": 0, "plain": 0}


def test_refusals_are_0_before_the_first(tmp_path: Path):
    package = write_package(tmp_path / "plain", with_layer=False)
    served = open_served(PackageDir(package.root), ServingSettings("m", guard=True))
    found = {family.name: family for family in served.families()}
    served.close()
    refused = {s.labels["reason"]: s.value for s in found["moh_refused_requests_total"].samples}
    reasons = ("non-finite outputs", "non-finite gates", "kernel error", "no rung")
    assert refused == dict.fromkeys(reasons, 0)


def test_without_a_library_function_bodies_serve_and_the_log_says_why(
    package: OnnxPackage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    without_library(tmp_path / "native", monkeypatch)
    settings = ServingSettings("m", guard=True, audit_log=str(tmp_path / "audit.jsonl"))
    served = open_served(PackageDir(package.root), settings)
    assert served.answer(vectors().inputs).rung == "functions"
    served.close()
    (line,) = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert (line["reason"], line["to"]) == ("cannot be opened", "functions")
    assert "cmake was not found" in line["evidence"]["error"]
    assert "warning: fallback level 'kernels' cannot serve" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["functions", "dense"])
def test_of_a_library_that_cannot_be_loaded_function_bodies_are_independent(
    package: OnnxPackage, tmp_path: Path, kind: str
):
    library, policy = tmp_path / "lib.so", tmp_path / "policy.yaml"
    library.write_bytes(b"no library")
    policy.write_text(f"rungs: [{{kind: {kind}}}]")
    settings = ServingSettings("m", guard=True, policy=str(policy), library=str(library))
    model = PackageDir(package.root)
    if kind == "dense":
        with pytest.raises(BackendError, match="cannot be loaded"):
            open_served(model, settings)
    else:
        open_served(model, settings).close()


def test_where_no_rung_can_be_opened_the_server_does_not_start(
    package: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    without_library(tmp_path / "native", monkeypatch)
    (tmp_path / "policy.yaml").write_text("rungs: [{kind: kernels}]")
    settings = ServingSettings("m", guard=True, policy=str(tmp_path / "policy.yaml"))
    with pytest.raises(BackendError, match=r"no layer runs on a kernel: .*cmake was not found"):
        open_served(PackageDir(package.root), settings)


@pytest.mark.parametrize("is_restart", [False, True], ids=["start", "restart"])
def test_damaged_kernels_stop_the_first_start_and_a_restart_goes_on_without_them(
    package: OnnxPackage, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_restart: bool
):
    library, log = write_damaged_library(tmp_path / "lib.so"), tmp_path / "audit.jsonl"
    settings = ServingSettings("m", guard=True, audit_log=str(log), library=str(library))
    model = PackageDir(package.root)
    if not is_restart:
        with pytest.raises(ValidationError, match=r"output 'y' .* tolerance"):
            open_served(model, settings)
        return
    served = open_served(model, settings, is_restart=True)
    assert served.answer(vectors().inputs).rung == "functions"
    served.close()
    (line,) = map(json.loads, log.read_text().splitlines())
    assert (line["reason"], line["to"]) == ("wrong known answer", "functions")
    assert "output 'y'" in line["evidence"]["error"]
    assert "warning: fallback level 'kernels' cannot serve: package" in capsys.readouterr().err


def test_a_fallback_with_a_wrong_known_answer_stops_the_start(served: ServedModel, tmp_path: Path):
    shutil.rmtree(tmp_path / "plain")
    write_package(tmp_path / "plain", scale=1.01)
    settings = ServingSettings("m", guard=True, policy=str(tmp_path / "policy.yaml"))
    with pytest.raises(ValidationError, match=f"package {tmp_path / 'plain'} answers a recorded"):
        open_served(served.model, settings)


def test_gates_of_another_package_are_for_its_known_answer_alone(
    package: OnnxPackage, tmp_path: Path
):
    shutil.rmtree(tmp_path / "plain")
    write_package(tmp_path / "plain")  # its layer has gates of the same name
    (tmp_path / "policy.yaml").write_text(LADDER)
    settings = ServingSettings("m", guard=True, policy=str(tmp_path / "policy.yaml"))
    served = open_served(PackageDir(package.root), settings)
    served.guard.pin("plain", "test")
    ran = served.guard.run(vectors().inputs, ("y",), package.gate_names)
    assert (ran.rung, set(ran.results)) == ("plain", {"y"})
    served.close()


def test_a_package_without_layers_has_no_kernels_to_miss(tmp_path: Path):
    package = write_package(tmp_path / "plain", with_layer=False)
    served = open_served(PackageDir(package.root), ServingSettings("m", guard=True))
    assert served.answer(vectors(with_layer=False).inputs).rung == "kernels"
    served.close()


def test_a_control_file_needs_a_folder_and_need_not_be_there_itself(
    package: OnnxPackage, tmp_path: Path
):
    settings = ServingSettings("m", guard=True, control=str(tmp_path / "control.json"))
    open_served(PackageDir(package.root), settings).close()
    settings = ServingSettings("m", guard=True, control=str(tmp_path / "missing/control.json"))
    with pytest.raises(ConfigError, match="in a folder that does not exist"):
        open_served(PackageDir(package.root), settings)


def test_a_drill_needs_a_control_file(package: OnnxPackage):
    settings = ServingSettings("m", guard=True, drill=True)
    with pytest.raises(ConfigError, match="no control file"):
        open_served(PackageDir(package.root), settings)


def test_a_rung_that_is_no_package_is_refused(package: OnnxPackage, tmp_path: Path):
    (tmp_path / "policy.yaml").write_text(LADDER.replace("path: plain", "path: nothing"))
    settings = ServingSettings("m", guard=True, policy=str(tmp_path / "policy.yaml"))
    with pytest.raises(PackageError, match="nothing"):
        open_served(PackageDir(package.root), settings)
