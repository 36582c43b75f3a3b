"""Bundles from strangers: native code of another installation runs by --trust-code alone."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.serving.genai.bundle import PACKAGE_FOLDER, GenaiBundle
from moh_deploy.serving.http import server
from moh_deploy.serving.source import require_own_code
from moh_deploy.serving.triton.bundle_json import BUNDLE_NAME
from moh_deploy.system.bounded_json import to_json_text
from tests.kernel_library import required_library
from tests.serving.triton.bundles import bundle_of_handmade, replace_whole, rewrite_bundle

STRANGER = b"\x7fELF and the code of a stranger"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    required_library()
    return bundle_of_handmade(tmp_path_factory.mktemp("own"))


@pytest.fixture
def bundle(own: Path, tmp_path: Path) -> Path:
    return shutil.copytree(own, tmp_path / "bundle")


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What would be served; no library is loaded."""
    tasks: list[object] = []
    monkeypatch.setattr(server, "serve_forever", lambda task, **_: tasks.append(task))
    monkeypatch.setattr(ctypes, "CDLL", lambda path: pytest.fail(f"{path} was loaded"))
    return tasks


def other_library(root: Path) -> str:
    """Put a stranger's code in the library's place; who writes a bundle writes its digests."""
    name = f"lib/{required_library().name}"
    replace_whole(root, name, STRANGER)
    return name


def other_name(root: Path) -> str:
    (root / "weights.bin").write_bytes(STRANGER)
    return "weights.bin"


def linked_folder(root: Path) -> str:
    elsewhere = root.parent / "elsewhere"
    shutil.move(root / "lib", elsewhere)
    (root / "lib").symlink_to(elsewhere)
    return "lib"


@pytest.mark.parametrize("change", [other_library, other_name, linked_folder])
def test_bundle_with_code_of_others_is_served_by_trust_alone(
    bundle: Path, change: Callable[[Path], str], served: list[object]
):
    moh_deploy.serve(bundle)
    name = change(bundle)
    words = f"{bundle}: {name} is 'native code of another installation', and using it runs code."
    with pytest.raises(ConfigError) as refused:
        moh_deploy.serve(bundle)
    assert refused.value.message == words
    assert "add --trust-code" in str(refused.value.hint)
    assert len(served) == 1
    moh_deploy.serve(bundle, trust_code=True)
    assert len(served) == 2


def test_check_loads_no_library_of_others(bundle: Path):
    path = bundle / other_library(bundle)
    path.write_bytes(required_library().read_bytes() + b" ")  # a real one, and not ours
    replace_whole(bundle, path.relative_to(bundle).as_posix(), path.read_bytes())
    found = {one.what: one.found for one in moh_deploy.check_bundle(bundle).findings}
    assert found["instruction sets"] == "not asked: the library is of another installation"


@pytest.mark.parametrize("key", ["audit_log", "control", "policy", "shadow", "reference"])
@pytest.mark.parametrize("place", ["/etc/motd", "../outside"])
def test_bundle_names_no_files_outside_of_it(bundle: Path, key: str, place: str):
    settings = json.loads((bundle / BUNDLE_NAME).read_text())["settings"]
    rewrite_bundle(bundle, {"settings": {**settings, "guard": True, key: place}})
    with pytest.raises(PackageError, match=rf"names '{place}', expected a path in the bundle"):
        moh_deploy.serve(bundle)


def test_genai_runs_no_code_of_others(tmp_path: Path):
    (tmp_path / PACKAGE_FOLDER).mkdir()
    (tmp_path / PACKAGE_FOLDER / "model.onnx.data").write_bytes(STRANGER)
    bundle = GenaiBundle("", library=None, shares_buffer=False, versions={})
    (tmp_path / BUNDLE_NAME).write_text(to_json_text(asdict(bundle)))
    with pytest.raises(ConfigError, match=r"package/model\.onnx\.data is 'native code"):
        moh_deploy.verify_genai_bundle(tmp_path)
    with pytest.raises(PackageError, match="manifest"):  # trusted, and no package
        moh_deploy.verify_genai_bundle(tmp_path, trust_code=True)


def test_files_that_are_no_code_need_no_trust(tmp_path: Path):
    (tmp_path / "empty").touch()
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "folder").mkdir()
    require_own_code(tmp_path, trust_code=False)
