"""Each fault is planted in a bundle, and `check` has to name it."""

from __future__ import annotations

import ctypes
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moh_deploy.serving.triton import check
from moh_deploy.serving.triton.bundle_json import read_bundle
from moh_deploy.serving.triton.check import BundleCheck, Finding, examine_bundle
from tests.kernel_library import required_library
from tests.nightly import sampled
from tests.serving.triton.bundles import (
    bundle_of_handmade,
    replace_in,
    replace_whole,
    rewrite_bundle,
)

CONFIG = "repository/handmade/config.pbtxt"
MODEL = "repository/handmade/1/package/model.onnx"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    required_library()
    folder = tmp_path_factory.mktemp("written")
    for backend in ("python", "onnxruntime"):
        bundle_of_handmade(folder / backend, backend=backend)  # type: ignore[arg-type]
    return folder


@pytest.fixture
def bundle(tmp_path: Path, written: Path) -> Path:
    shutil.copytree(written / "python" / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def native(tmp_path: Path, written: Path) -> Path:
    shutil.copytree(written / "onnxruntime" / "bundle", tmp_path / "native")
    return tmp_path / "native"


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A folder that looks like a server with a Python backend."""
    root = tmp_path / "server"
    for file in ("bin/tritonserver", "backends/python/libtriton_python.so", stub(PYTHON)):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def stub(python: str) -> str:
    return f"python_backend_stubs/{python}/triton_python_backend_stub"


def wrong(found: BundleCheck) -> list[Finding]:
    return [one for one in found.findings if one.is_good is False]


def test_whole_bundle_is_found_good(bundle: Path, server: Path):
    found = examine_bundle(bundle, server)
    assert wrong(found) == []
    assert found.failure is None
    assert "nothing stands against loading it" in found.to_markdown()


def test_changed_library_is_named_and_not_loaded(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    name = f"lib/{required_library().name}"
    with (bundle / name).open("ab") as library:
        library.write(b" ")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail(f"{name} is loaded"))
    found = {one.what: one.found for one in wrong(examine_bundle(bundle))}
    assert found[name] == "has changed since it was written"
    assert found["kernels"] == f"not loaded: {name} has changed since it was written"


def test_machine_without_server_is_no_fault(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "find_server", lambda given: None)
    found = examine_bundle(bundle)
    assert found.failure is None
    assert found.findings[-1].found == "is not on this machine: not looked at"


def test_named_folder_without_server_is_wrong(bundle: Path, tmp_path: Path):
    (finding,) = wrong(examine_bundle(bundle, tmp_path))
    assert finding.what == "tritonserver"
    assert f"is not in {tmp_path}" in finding.found


def test_edited_configuration_is_a_note(bundle: Path, server: Path):
    replace_in(bundle, CONFIG, "count: 1", "count: 2")
    found = examine_bundle(bundle, server)
    assert found.failure is None
    assert Finding(CONFIG, "has been edited since it was written", None) in found.findings


def test_more_threads_than_cores_are_a_note(bundle: Path, server: Path):
    replace_in(bundle, CONFIG, "count: 1", "count: 4096")
    (threads,) = [one for one in examine_bundle(bundle, server).findings if one.what == "threads"]
    assert threads.is_good is None
    assert "4096 instances" in threads.found


@pytest.mark.parametrize("text", ["auto", "9" * 5000])
def test_threads_that_are_no_number_are_wrong(native: Path, text: str):
    old = 'key: "intra_op_thread_count"\n  value {\n    string_value: "1"'
    replace_in(native, CONFIG, old, old.replace('"1"', f'"{text}"'))
    found = [one.found for one in wrong(examine_bundle(native)) if one.what == CONFIG]
    assert found == [f"intra_op_thread_count is '{text[:20]}', expected a number of threads"]


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def edit(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: replace_in(root, CONFIG, old, new)


def another_version(root: Path) -> None:
    shutil.copytree(root / "repository/handmade/1", root / "repository/handmade/2")


def other_model(root: Path) -> None:
    replace_whole(root, MODEL, b"other")
    rewrite_bundle(root, {"files": {**read_bundle(root).files, MODEL: "0" * 64}})


def library(root: Path) -> Path:
    info = read_bundle(root).library
    assert info is not None
    return root / info.file


def other_machine(root: Path) -> None:
    path = library(root)
    content = bytearray(path.read_bytes())
    content[18:20] = (8).to_bytes(2, "little")
    replace_whole(root, path.relative_to(root).as_posix(), bytes(content))


def newer_glibc(root: Path) -> None:
    path = library(root)
    content = path.read_bytes() + b"\0GLIBC_9.99\0"
    replace_whole(root, path.relative_to(root).as_posix(), content)


def no_library(root: Path) -> None:
    path = library(root)
    replace_whole(root, path.relative_to(root).as_posix(), b"text")


def old_writer(root: Path) -> None:
    rewrite_bundle(root, {"versions": {**read_bundle(root).versions, "moh-deploy": "0.0.1"}})


@sampled(3)
@pytest.mark.parametrize(
    ("plant", "what", "found"),
    [
        (remove("repository/handmade/1/model.py"), "repository/handmade/1/model.py", "is missing"),
        (other_model, MODEL, "has changed since it was written"),
        (another_version, "repository/handmade/2/model.py", "a server would read it"),
        (other_machine, "lib/libmoh_ort_cpu.so", f"machine 8, this is {platform.machine()}"),
        (newer_glibc, "lib/libmoh_ort_cpu.so", "needs the GNU C library 9.99 or newer, this"),
        (no_library, "lib/libmoh_ort_cpu.so", "is no native library"),
        (old_writer, "moh-deploy", "0.1.0 is here, 0.0.1 wrote it"),
        (edit("name:", "name"), CONFIG, "expected ':' or '{'"),
        (edit('name: "handmade"', 'name: "other"'), CONFIG, "name is other, expected handmade"),
        (edit('"python"', '"onnxruntime"'), CONFIG, "backend is onnxruntime, expected python"),
        (edit("max_batch_size: 64", "max_batch_size: 65"), CONFIG, "is 65, expected 1 to 64"),
        (edit("max_batch_size: 64", "max_batch_size: 0"), CONFIG, "is 0, expected 1 to 64"),
        (edit('name: "x"', 'name: "z"'), CONFIG, "input has z; expected x"),
        (edit("dims: [ -1, 8 ]", "dims: [ 3, 8 ]"), CONFIG, "dims is [3, 8], expected [-1, 8]"),
        (edit("TYPE_FP32", "TYPE_FP16"), CONFIG, "data_type is TYPE_FP16, expected TYPE_FP32"),
        (edit('"0-0"', '"0-1"'), CONFIG, "warm-up file '0-1' is missing"),
        (edit("dims: [ 3, 8 ]", "dims: [ 4, 8 ]"), CONFIG, "has 96 bytes, its dims make 128"),
        (
            edit(
                "max_batch_size",
                'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/nowhere" } }\n'
                "max_batch_size",
            ),
            CONFIG,
            "EXECUTION_ENV_PATH is '/nowhere', which does not exist here",
        ),
    ],
)
def test_fault_is_named(
    bundle: Path, server: Path, plant: Callable[[Path], None], what: str, found: str
):
    plant(bundle)
    report = examine_bundle(bundle, server)
    faults = [one for one in wrong(report) if one.what == what and found in one.found]
    assert faults, report.findings
    assert report.failure is not None
    assert report.failure.exit_code == 5
    assert all(one.fix for one in wrong(report))


def test_library_that_a_native_configuration_names_has_to_be_there(
    native: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(check, "find_server", lambda given: None)
    assert examine_bundle(native).failure is None
    replace_in(native, CONFIG, "libmoh_ort_cpu.so", "libother.so")
    (fault,) = wrong(examine_bundle(native))
    assert fault.found == "op_library_filename is 'libother.so', which is not in lib/"


def test_server_without_the_backend_is_named(native: Path, server: Path):
    (fault,) = wrong(examine_bundle(native, server))
    assert fault.found.endswith("has no backend 'onnxruntime', only python")


def test_server_without_a_stub_of_this_python_is_named(bundle: Path, server: Path):
    (server / stub(PYTHON)).unlink()
    (fault,) = wrong(examine_bundle(bundle, server))
    assert fault.found == f"the server has no stub for Python {PYTHON}"


def test_python_without_its_library_is_named(
    bundle: Path, server: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(check.sysconfig, "get_config_var", lambda name: "/nowhere")
    (fault,) = wrong(examine_bundle(bundle, server))
    assert fault.found == f"libpython{PYTHON}.so.1.0 is not in /nowhere"
