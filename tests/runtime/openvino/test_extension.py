import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from moh_deploy import native
from moh_deploy.errors import BackendError
from moh_deploy.native import build_openvino
from moh_deploy.native.build_openvino import NotBuilt
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.openvino import extension
from moh_deploy.runtime.openvino.extension import choose_extension, import_openvino
from tests.kept_builds import COMPILER
from tests.openvino_extension import built_extension, require_openvino


def test_a_missing_openvino_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match="OpenVINO cannot be loaded") as caught:
        import_openvino()
    assert caught.value.hint == "Install it: pip install 'moh-deploy[openvino]'."


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the installation be a copy of the built one, whose extension is returned."""
    shutil.copytree(built_extension(), folder)
    monkeypatch.setattr(native, "FOLDER", folder)
    return folder / native.OPENVINO_NAME


@pytest.mark.nightly
def test_without_the_extension_bodies_run_and_the_reason_is_told(tmp_path: Path, monkeypatch):
    installed(tmp_path / "native", monkeypatch).unlink()
    found, use = choose_extension(Variant(runtime="openvino"), "float32")
    assert found is None
    assert "python -m moh_deploy.native.build_openvino builds it" in str(use.reason)
    with pytest.raises(BackendError, match=r"there is no libmoh_openvino\.so"):
        choose_extension(Variant(runtime="openvino", kernels="require"), "float32")


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
