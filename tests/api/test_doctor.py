"""The whole look: at this machine, and at ones that lack something, made of a fresh environment."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import moh_deploy
from moh_deploy.api.doctor import doctor
from moh_deploy.graph.choose_layers import write_choices
from moh_deploy.machine.doctor_report import DoctorReport
from tests.cli.run_cli import REPOSITORY
from tests.fakes import Fakes, fakes
from tests.handmade_package import write_package
from tests.machine.test_gpu import fat_binary
from tests.nightly import nightly
from tests.runtime.tensorrt.engines import simulate_gpu, write_engine
from tests.toy_add_on import own_entry_points

__all__ = ["fakes"]

_LIGHT = ("click", "markdown_it", "mdurl", "packaging", "pygments", "rich", "typing_extensions")


@dataclass
class Environment:
    """A Python that has little, and a folder that its path begins with."""

    python: Path
    folder: Path

    def doctor(self, *arguments: str) -> tuple[int, str, str]:
        environment = os.environ | {"PYTHONPATH": f"{self.folder}:{REPOSITORY}"}
        command = [str(self.python), "-m", "moh_deploy", "doctor", *arguments]
        # Elsewhere than in the repository, whose metadata are those of the whole package.
        ran = subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, text=True
        )
        return ran.returncode, ran.stdout, ran.stderr


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the packages that print a report, and with no other."""
    root = tmp_path_factory.mktemp("bare")
    venv.create(root / "venv", with_pip=False, symlinks=True)
    (root / "lib").mkdir()
    for name in _LIGHT:
        spec = importlib.util.find_spec(name)
        assert spec.origin is not None
        origin = Path(spec.origin)
        origin = origin.parent if origin.name == "__init__.py" else origin
        (root / "lib" / origin.name).symlink_to(origin)
    info = root / "lib" / "moh_deploy-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: moh-deploy\nVersion: 0.1.0\n"
        "Requires-Dist: onnxruntime>=1.23\n"
        "Requires-Dist: torch>=2.9; extra == 'export'\n"
    )
    (info / "entry_points.txt").write_text(own_entry_points())
    return Environment(root / "venv" / "bin" / "python", root / "lib")


@pytest.fixture(scope="module")
def here() -> DoctorReport:
    return doctor()


def _abilities(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {ability["name"]: ability for ability in content["abilities"]}


@nightly
def test_this_machine_exports_and_runs(here: DoctorReport):
    """The tests that run beside this one do both."""
    assert here.failure is None
    found = {ability.name: ability for ability in here.abilities}
    assert found["run on the CPU, by kernels"].can == (moh_deploy.kernel_library() is not None)
    has_rtx = importlib.util.find_spec("tensorrt_rtx") is not None
    assert found["build TensorRT-RTX engines"].can == has_rtx
    if shutil.which("nvidia-smi") is None:
        assert not any(found[name].can for name in found if "run TensorRT" in name)


@nightly
def test_the_report_is_json(here: DoctorReport):
    content = json.loads(json.dumps(here.to_json()))
    assert set(content) == {"machine", "abilities"}
    assert content["machine"]["python"] == sys.version.split()[0]
    assert all(
        set(ability) == {"can", "name", "how", "gaps", "essential"}
        for ability in content["abilities"]
    )


@nightly
def test_an_artefact_is_loaded(tmp_path: Path):
    made = write_package(tmp_path / "made")
    package = tmp_path / "package"
    write_choices(made, [replace(layer, choice="dense") for layer in made.manifest.layers], package)
    found = doctor(package)
    assert found.failure is None
    assert found.abilities[-1].name == f"run {package}"
    assert "ONNX Runtime" in str(found.abilities[-1].how)
    assert str(found.abilities[-1].how).endswith("0 nodes on a kernel, 0 as functions, 1 dense")


@nightly
def test_an_artefact_that_does_not_run_here_ends_with_1(
    here: DoctorReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("moh_deploy.api.doctor.look_around", lambda *_: here.machine)
    if shutil.which("nvidia-smi") is not None:
        pytest.skip("there is a GPU")
    failure = doctor(write_engine(tmp_path / "engine")).failure
    assert failure.exit_code == 1
    assert "cannot run here: no NVIDIA driver" in failure.message


@nightly
def test_a_machine_with_a_gpu_builds_and_runs_with_kernels(fakes: Fakes):
    """Simulated: an L4, TensorRT, and a plugin library with code for it, or for another GPU."""
    simulate_gpu(fakes)
    fakes.program("nvidia-smi", "echo 590.12")
    code = f'const char* moh_plugin_version() {{ return "{moh_deploy.__version__}"; }}'
    plugin = fakes.library("libmoh_plugin.so", code)
    empty = plugin.read_bytes()
    plugin.write_bytes(empty + fat_binary((2, 80, 8), (2, 89, 8)) + b"-" * 80)
    found = {ability.name: ability for ability in doctor(plugin=plugin).abilities}
    assert found["build and run TensorRT engines, with kernels"].how == "TensorRT 10.9.0.34"
    plugin.write_bytes(empty + fat_binary((2, 90, 8)) + b"-" * 80)
    found = {ability.name: ability for ability in doctor(plugin=plugin).abilities}
    assert found["build and run TensorRT engines"].can
    (gap,) = found["build and run TensorRT engines, with kernels"].gaps
    assert gap.why == f"{plugin} has no code for NVIDIA L4 (8.9)"


def test_a_machine_without_anything_ends_with_1_and_says_what_to_install(bare: Environment):
    code, out, err = bare.doctor("--json")
    content = json.loads(out)
    assert code == 1
    assert content["error"]["exit_code"] == 1
    assert "cannot run on the CPU: onnxruntime is not installed" in err
    assert "hint: pip install 'onnxruntime>=1.23'" in err
    found = _abilities(content)
    assert not any(
        item["can"] for name, item in found.items() if not name.startswith("build libmoh")
    )
    fixes = {gap["fix"] for gap in found["export a model"]["gaps"]}
    assert "pip install 'onnxruntime>=1.23'" in fixes
    assert any(str(fix).startswith("pip install 'moh-deploy[export]'.") for fix in fixes)
    assert not found["export a model"]["essential"]
    assert content["machine"]["tensorrt"][1]["alone"]["fix"] == "pip install tensorrt-rtx-cu13"


@nightly
def test_it_is_readable_there_too(bare: Environment):
    code, out, err = bare.doctor()
    assert code == 1
    assert "not installed: torch" in out
    assert "NOT ALL THAT IS ESSENTIAL" in out
    assert "Traceback" not in out + err


@nightly
def test_the_build_of_onnxruntime_for_gpus_will_do(bare: Environment, tmp_path: Path):
    info = tmp_path / "onnxruntime_gpu-1.30.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.30.0\n"
    )
    with_gpu = Environment(bare.python, tmp_path)
    for entry in bare.folder.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    content = json.loads(with_gpu.doctor("--json")[1])
    packages = {item["name"]: item for item in content["machine"]["packages"]["found"]}
    assert packages["onnxruntime-gpu"]["problem"] is None
    assert "onnxruntime" not in packages
