"""OpenVINO's extension in tests, built for the OpenVINO that is there, or a skip where none is."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moh_deploy import native
from tests.kept_builds import BUILDS, COMPILER, ROOT, build_once, digest_of
from tests.kernel_library import required_library

TOOL = ROOT / "moh_deploy" / "native" / "build_openvino.py"
FOLDER = BUILDS / "openvino"


def require_openvino() -> None:
    """Skip the test where OpenVINO is not installed."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("no OpenVINO: pip install 'moh-deploy[openvino]'")


def built_extension() -> Path:
    """Return the folder of an extension for this OpenVINO, with the kernels beside it."""
    require_openvino()
    kernels = required_library()
    plugins = ROOT / "plugins"
    used = [plugins / "openvino", plugins / "nodes", plugins / "include" / "moh"]
    sources = [TOOL, plugins / "cpu" / "kernels.h", *(path for at in used for path in at.iterdir())]

    def build() -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "moh_deploy.native.build_openvino", "--folder", FOLDER]
        subprocess.run(command, cwd=ROOT, check=True)

    content = digest_of(sources, [importlib.metadata.version("openvino"), COMPILER])
    build_once(FOLDER / native.OPENVINO_NAME, content, build)
    link = FOLDER / native.LIBRARY_NAME
    link.unlink(missing_ok=True)
    link.symlink_to(kernels)
    return FOLDER


def install_extension(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Let this process, and those that it starts, find the extension; return its folder.

    Args:
        folder: Where what tells other processes is written.
    """
    return install_native(monkeypatch, folder, built_extension())


def install_native(monkeypatch: pytest.MonkeyPatch, folder: Path, built: Path) -> Path:
    """Let this process, and those that it starts, find native libraries in a folder: return it."""
    monkeypatch.setattr(native, "FOLDER", built)
    (folder / "sitecustomize.py").write_text(
        "import pathlib\n"
        "from moh_deploy import native\n"
        f"native.FOLDER = pathlib.Path({str(built)!r})\n"
    )
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    return built
