import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy import native
from moh_deploy.errors import BackendError
from moh_deploy.native import build_openvino
from moh_deploy.native.build_openvino import NotBuilt
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.openvino import extension
from moh_deploy.runtime.openvino.extension import choose_extension, import_openvino
from tests.edge_case_package import write_edge_package
from tests.kept_builds import COMPILER
from tests.openvino_extension import built_extension, install_native, require_openvino


def test_a_missing_openvino_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match="OpenVINO cannot be loaded") as caught:
        import_openvino()
    assert caught.value.hint == "Install it: pip install 'moh-deploy[openvino]'."


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the installation be a copy of the built one, whose extension is returned."""
    shutil.copytree(built_extension(), folder)
    return install_native(monkeypatch, folder.parent, folder) / native.OPENVINO_NAME


def without_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no program be found."""
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.nightly
def test_a_missing_extension_is_built_on_first_use(tmp_path: Path, monkeypatch, capfd):
    path = installed(tmp_path / "native", monkeypatch)
    path.unlink()
    capfd.readouterr()  # the copied one may have been built just now
    for kernels in ("require", "auto"):
        found, use = choose_extension(Variant(runtime="openvino", kernels=kernels), "float32")
        assert found is not None
        assert found.path == path
        assert use.library is not None
    assert capfd.readouterr().err.count("building libmoh_openvino.so") == 1
    assert [file.name for file in path.parent.glob("*.partial")] == []


@pytest.mark.nightly
def test_without_a_compiler_bodies_run_and_the_reason_is_told(tmp_path: Path, monkeypatch):
    installed(tmp_path / "native", monkeypatch).unlink()
    without_compiler(tmp_path / "bin", monkeypatch)
    found, use = choose_extension(Variant(runtime="openvino"), "float32")
    assert found is None
    assert "there is no C++ compiler: apt install g++, then run this again" in str(use.reason)
    with pytest.raises(
        BackendError, match=r"there is no libmoh_openvino\.so, .* no C\+\+ compiler"
    ):
        choose_extension(Variant(runtime="openvino", kernels="require"), "float32")


@pytest.mark.nightly
def test_reports_begin_with_the_bodies_that_ran_and_what_to_do(tmp_path: Path, monkeypatch):
    write_edge_package(tmp_path / "package")
    installed(tmp_path / "native", monkeypatch).unlink()
    without_compiler(tmp_path / "bin", monkeypatch)
    package, inputs = OnnxPackage.open(tmp_path / "package"), tmp_path / "inputs.npz"
    np.savez(inputs, **package.vectors[0].inputs)
    run = partial(moh_deploy.run, package.root, inputs=inputs, outputs=tmp_path / "outputs.npz")
    reports = [
        run(runtime="openvino"),
        moh_deploy.verify(package.root, runtime="openvino"),
        moh_deploy.bench(package.root, runtime="openvino", min_time=0.01, warmup=0),
        moh_deploy.tune(package.root, runtime="openvino", choose={"all": "sparse"}, dry_run=True),
    ]
    for report in reports:
        first = report.to_markdown().lstrip().splitlines()[0]
        assert first.startswith("**Function bodies ran, which compute every head"), first
        assert "apt install g++" in first
    assert "Function bodies ran" not in run(runtime="openvino", kernels="off").to_markdown()


@pytest.mark.nightly
def test_a_compiler_that_fails_runs_once_a_process(tmp_path: Path, monkeypatch):
    installed(tmp_path / "native", monkeypatch).unlink()
    compiler, calls = tmp_path / "failing", tmp_path / "calls"
    compiler.write_text(f"#!/bin/sh\necho >> {calls}\necho no header\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    for _ in range(2):
        _, use = choose_extension(Variant(runtime="openvino"), "float32")
        assert "the compiler failed; python -m moh_deploy.native.build_openvino shows" in str(
            use.reason
        )
    assert calls.read_text().count("\n") == 1


@pytest.mark.nightly
def test_an_extension_for_another_release_is_a_sentence(tmp_path: Path, monkeypatch):
    path = installed(tmp_path / "native", monkeypatch)
    content = path.read_bytes()
    name = next(item for item in content.split(b"\0") if item.startswith(b"libopenvino.so."))
    path.write_bytes(content.replace(name, name[:-4] + b"2099"))
    with pytest.raises(BackendError, match=r"libopenvino\.so\.2099.*built for another release"):
        choose_extension(Variant(runtime="openvino"), "float32")


@pytest.mark.nightly
def test_an_extension_for_another_patch_of_the_release_is_a_sentence(tmp_path: Path, monkeypatch):
    installed(tmp_path / "native", monkeypatch)
    monkeypatch.setattr(extension, "_release", lambda: "2099.1.0")
    with pytest.raises(BackendError, match=r"built for OpenVINO .*, this is OpenVINO 2099\.1\.0"):
        choose_extension(Variant(runtime="openvino"), "float32")


@pytest.mark.nightly
def test_another_library_in_its_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = installed(tmp_path / "native", monkeypatch)
    path.unlink()
    command = [COMPILER, "-shared", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=b"int x;", check=True)
    with pytest.raises(BackendError, match="it has no function moh_openvino_version"):
        choose_extension(Variant(runtime="openvino"), "float32")


@pytest.fixture
def any_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be something to compile against, whose headers nobody reads."""
    monkeypatch.setattr(build_openvino, "_wheel", Path)
    monkeypatch.setattr(
        build_openvino, "_command", lambda cxx, _, __, to: [*cxx.split(), "-o", str(to)]
    )


@pytest.mark.usefixtures("any_wheel")
def test_a_compiler_that_is_not_there_is_a_sentence(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CXX", "compiler-of-nobody -O1")
    with pytest.raises(NotBuilt, match="compiler-of-nobody cannot be run: No such file"):
        build_openvino.build_openvino(tmp_path)


@pytest.mark.usefixtures("any_wheel")
def test_a_build_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CXX", "c++")

    def interrupted(command: Sequence[str], **_: object) -> None:
        Path(command[-1]).touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_openvino.build_openvino(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.nightly
def test_openvino_is_named_with_its_release():
    require_openvino()
    assert extension.openvino_name().startswith("OpenVINO 20")
