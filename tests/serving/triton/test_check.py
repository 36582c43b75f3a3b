"""Each fault is planted in a bundle, and `check` has to name it."""

import ctypes
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import PackageError
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton import bundle as triton_bundle
from moh_deploy.serving.triton import check
from moh_deploy.serving.triton.bundle import write_bundle
from moh_deploy.serving.triton.bundle_json import NEVER_RUN, open_bundle, read_bundle
from moh_deploy.serving.triton.check import (
    BundleCheck,
    Finding,
    examine_bundle,
    glibc_here,
    library_needs,
    version_of,
)
from tests import handmade_package
from tests.handmade_package import vectors
from tests.kernel_library import required_library
from tests.nightly import sampled
from tests.runtime.tensorrt.engines import write_engine
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
    return bundle_of_handmade(tmp_path_factory.mktemp("written"))


@pytest.fixture
def bundle(tmp_path: Path, written: Path) -> Path:
    shutil.copytree(written, tmp_path / "bundle")
    return tmp_path / "bundle"


MACHINE = platform.machine()
LIBRARY = "lib/libmoh_ort_cpu.so"
STUB = "backends/python/triton_python_backend_stub"
PACKED = f"python_backend_stubs/{PYTHON}/triton_python_backend_stub"


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A folder laid out as the server's, with the stub where the backend looks for it."""
    root = tmp_path / "server"
    for file in ("bin/tritonserver", "backends/python/libtriton_python.so", STUB, PACKED):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(stub(PYTHON))
    return root


def stub(python: str) -> bytes:
    """Return the part of a stub by which it is known: the library that it is linked with."""
    return f"\x7fELF\0libpython{python}.so.1.0\0".encode()


def wrong(found: BundleCheck) -> list[Finding]:
    return [finding for finding in found.findings if finding.is_good is False]


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
    found = {fault.what: fault.found for fault in wrong(examine_bundle(bundle))}
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
    (threads,) = [
        finding for finding in examine_bundle(bundle, server).findings if finding.what == "threads"
    ]
    assert threads.is_good is None
    assert "4096 instances" in threads.found


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def edit(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: replace_in(root, CONFIG, old, new)


def another_version(root: Path) -> None:
    shutil.copytree(root / "repository/handmade/1", root / "repository/handmade/2")


def other_model(root: Path) -> None:
    replace_whole(root, MODEL, b"other")
    rewrite_bundle(root, {"files": {**read_bundle(root).files, MODEL: "0" * 64}})


def library(**changes: str) -> Callable[[Path], None]:
    """Return what changes the needs of the library in `bundle.json`."""

    def plant(root: Path) -> None:
        info = json.loads((root / "bundle.json").read_text())["library"]
        rewrite_bundle(root, {"library": {**info, **changes}})

    return plant


def other_input(root: Path) -> None:
    info = {"name": "z", "dtype": "int64", "shape": ["batch", 10**30]}
    rewrite_bundle(root, {"inputs": [info]})


def old_writer(root: Path) -> None:
    rewrite_bundle(root, {"versions": {**read_bundle(root).versions, "moh-deploy": "0.0.1"}})


def test_missing_openvino_is_named(tmp_path: Path, server: Path, monkeypatch: pytest.MonkeyPatch):
    tuned = replace(handmade_package.MANIFEST, runtime="openvino")
    monkeypatch.setattr(handmade_package, "MANIFEST", tuned)
    with monkeypatch.context() as installed:
        for module in (triton_bundle, check):
            installed.setattr(module, "openvino_name", lambda: "OpenVINO 2026.4.1")
        bundle = bundle_of_handmade(tmp_path)
        assert wrong(examine_bundle(bundle, server)) == []
    monkeypatch.setitem(sys.modules, "openvino", None)
    (fault,) = wrong(examine_bundle(bundle, server))
    assert (fault.what, "OpenVINO cannot be loaded" in fault.found) == ("openvino", True)
    assert "pip install 'moh-deploy[openvino]'" in (fault.fix or "")


@sampled(3)
@pytest.mark.parametrize(
    ("plant", "what", "found"),
    [
        (remove("repository/handmade/1/model.py"), "repository/handmade/1/model.py", "is missing"),
        (other_model, MODEL, "has changed since it was written"),
        (another_version, "repository/handmade/2/model.py", "a server would read it"),
        (library(machine="s390x"), LIBRARY, f"is for s390x, this is {MACHINE}"),
        (library(glibc="9.99"), LIBRARY, "needs the GNU C library 9.99 or newer, this"),
        (other_input, CONFIG, "input has x; expected z"),
        (old_writer, "moh-deploy", f"{moh_deploy.__version__} is here, 0.0.1 wrote it"),
        (edit("name:", "name"), CONFIG, """line 1, column 6: 'name "handmade"': Expected ":\""""),
        (edit('name: "handmade"', 'name: "other"'), CONFIG, "name is other, expected handmade"),
        (edit('"python"', '"onnxruntime"'), CONFIG, "backend is onnxruntime, expected python"),
        (edit("dynamic_batching", "dynamic_batch"), CONFIG, 'has no field named "dynamic_batch"'),
        (edit("max_batch_size: 64", "max_batch_size: 65"), CONFIG, "is 65, expected 1 to 64"),
        (edit("max_batch_size: 64", "max_batch_size: 0"), CONFIG, "is 0, expected 1 to 64"),
        (edit('name: "x"', 'name: "z"'), CONFIG, "input has z; expected x"),
        (edit("dims: [-1, 8]", "dims: [3, 8]"), CONFIG, "'dims': [3, 8]}, expected {'"),
        (edit("TYPE_FP32", "TYPE_FP16"), CONFIG, "'TYPE_FP16', 'dims': [-1, 8]}, expected {'"),
        (edit("dims: [-1, 8]", "dims: [-1, 8] reshape { }"), CONFIG, "'reshape': []}, expected {'"),
        (edit('"0-0"', '"0-1"'), CONFIG, "warm-up file '0-1' is missing"),
        (edit("dims: [3, 8]", "dims: [4, 8]"), CONFIG, "has 96 bytes, its dims make 128"),
    ],
)
def test_fault_is_named(
    bundle: Path, server: Path, plant: Callable[[Path], None], what: str, found: str
):
    plant(bundle)
    report = examine_bundle(bundle, server)
    faults = [fault for fault in wrong(report) if fault.what == what and found in fault.found]
    assert faults, report.findings
    assert report.failure.exit_code == 5
    assert all(fault.fix for fault in wrong(report))


@pytest.mark.parametrize(
    ("laid", "problem"),
    [(None, "is missing"), (stub("3.9"), "is for Python 3.9")],
    ids=["missing", "of another Python"],
)
def test_stub_that_is_not_in_place_is_mended_by_the_command(
    bundle: Path, server: Path, laid: bytes | None, problem: str
):
    (server / STUB).unlink()
    if laid is not None:
        (server / STUB).write_bytes(laid)
    (fault,) = wrong(examine_bundle(bundle, server))
    assert f"{server / STUB} {problem}" in fault.found
    command = str(fault.fix).removeprefix("Copy it: ")
    subprocess.run(shlex.split(command), check=True)
    assert examine_bundle(bundle, server).failure is None


@pytest.mark.parametrize(
    ("removed", "found"),
    [
        (["backends/python"], "has no backend 'python', only none"),
        ([STUB, PACKED], f"the server has no stub for Python {PYTHON}"),
    ],
    ids=["backend", "stub"],
)
def test_server_that_lacks_something_is_named(
    bundle: Path, server: Path, removed: list[str], found: str
):
    for name in removed:
        shutil.rmtree(server / name) if (server / name).is_dir() else (server / name).unlink()
    (fault,) = wrong(examine_bundle(bundle, server))
    assert fault.found.endswith(found)


def test_python_without_its_library_is_named(bundle: Path, server: Path, monkeypatch):
    monkeypatch.setattr(check.sysconfig, "get_config_var", lambda name: "/nowhere")
    (fault,) = wrong(examine_bundle(bundle, server))
    assert fault.found == f"libpython{PYTHON}.so.1.0 is not in /nowhere"


def test_library_of_debians_python_is_found(
    bundle: Path, server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    places = {"LIBDIR": str(tmp_path), "MULTIARCH": "x86_64-linux-gnu"}
    monkeypatch.setattr(check.sysconfig, "get_config_var", places.get)
    (tmp_path / places["MULTIARCH"]).mkdir()
    (tmp_path / places["MULTIARCH"] / f"libpython{PYTHON}.so.1.0").touch()
    assert examine_bundle(bundle, server).failure is None


def in_environment(bundle: Path, place: Path) -> None:
    value = f'value {{ string_value: "{place}" }}'
    with (bundle / CONFIG).open("a") as config:
        config.write(f'parameters {{ key: "EXECUTION_ENV_PATH" {value} }}\n')


def test_environment_decides_which_stub_the_server_needs(bundle: Path, server: Path):
    environment = bundle.parent / "environment"
    in_environment(bundle, environment)
    (fault,) = wrong(examine_bundle(bundle, server))
    assert fault.found == f"is '{environment}', where there is no Python with bin/activate"
    (environment / "lib" / "python3.9").mkdir(parents=True)
    (environment / "bin").mkdir()
    (environment / "bin" / "activate").touch()
    (fault,) = wrong(examine_bundle(bundle, server))
    assert fault.found == "the server has no stub for Python 3.9"
    (server / STUB).write_bytes(stub("3.9"))
    assert examine_bundle(bundle, server).failure is None


def test_printed_command_starts_the_server_that_was_found(bundle: Path, server: Path):
    moved = bundle.rename(bundle.with_name("b $1's"))
    program, given = server / "bin" / "tritonserver", server / "given"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$PATH" "$LD_LIBRARY_PATH" "$@" > {given}\n')
    program.chmod(0o755)
    start = examine_bundle(moved, server).start
    subprocess.run(["sh", "-c", str(start)], check=True, env={"LD_LIBRARY_PATH": "/before"})
    path, libraries, repository, backends = given.read_text().splitlines()
    assert path.split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert libraries.endswith(":/before")
    assert repository == f"--model-repository={moved / 'repository'}"
    assert backends == f"--backend-directory={server / 'backends'}"


# What earlier versions wrote: arrays with blanks within their brackets, and another probe.
OLD_CONFIG = """\
name: "handmade"
backend: "python"
max_batch_size: 64
input {
  name: "x"
  data_type: TYPE_FP32
  dims: [ -1, 8 ]
}
output {
  name: "y"
  data_type: TYPE_FP32
  dims: [ -1, 8 ]
}
instance_group {
  count: 1
  kind: KIND_CPU
}
version_policy {
  specific {
    versions: 1
  }
}
dynamic_batching {
  max_queue_delay_microseconds: 1000
  default_queue_policy {
    max_queue_size: 1024
  }
}
"""


def test_bundle_of_an_earlier_version_is_checked_and_served(bundle: Path, server: Path):
    replace_whole(bundle, CONFIG, OLD_CONFIG.encode())
    replace_whole(bundle, "probe.py", b"print('its own request')\n")
    (bundle / "probe.request").unlink()
    files = read_bundle(bundle).files
    del files["probe.request"]
    rewrite_bundle(bundle, {"files": files})
    assert examine_bundle(bundle, server).failure is None
    served = open_bundle(bundle)
    answer = served.answer(vectors().inputs).outputs["y"]
    served.close()
    np.testing.assert_allclose(answer, vectors().outputs["y"], rtol=1e-5, atol=1e-6)


# Engines.


@pytest.mark.parametrize(
    ("changes", "what", "found"),
    [
        ({"versions": {"moh-deploy": "0.1.0", "TensorRT-RTX": "1.7"}}, "engine", "TensorRT-RTX"),
        # What earlier versions wrote for an engine with plugins.
        (
            {"library": {"file": "lib/libmoh_plugin.so", "glibc": "2.17", "machine": MACHINE}},
            "lib/libmoh_plugin_registered.so",
            "is not in the bundle",
        ),
    ],
)
def test_engine_that_the_server_cannot_load_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    what: str,
    found: str,
):
    monkeypatch.setattr(check, "find_server", lambda given: None)
    engine, root = write_engine(tmp_path / "engine"), tmp_path / "bundle"
    write_bundle(find_deployed(engine), root, ServingSettings("m"))
    report = examine_bundle(root)
    assert Finding("tensorrt", NEVER_RUN, None) in report.findings
    assert report.failure is None
    (root / "lib").mkdir()
    rewrite_bundle(root, changes)
    replace_whole(root, "lib/libmoh_plugin.so", b"plugins")
    (fault,) = wrong(examine_bundle(root))
    assert (fault.what, found in fault.found) == (what, True)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf was not found")
def test_floor_is_what_readelf_lists():
    library = required_library()
    ran = subprocess.run(
        ["readelf", "-V", str(library)], capture_output=True, text=True, check=True
    )
    listed = {tuple(map(int, item)) for item in re.findall(r"GLIBC_(\d+)\.(\d+)", ran.stdout)}
    assert library_needs(library)[1] == max(listed)


def test_library_that_was_built_here_runs_here():
    library = required_library()
    machine, floor = library_needs(library)
    assert machine == platform.machine()
    here = glibc_here()
    assert here is not None
    assert here >= floor


def test_versions_that_follow_each_other_are_all_seen(tmp_path: Path):
    header = b"\x7fELF\x02\x01" + bytes(12) + (183).to_bytes(2, "little") + bytes(60)
    names = b"\0memcpy\0GLIBC_2.9\0GLIBC_2.34\0GLIBC_2.4\0GLIBC_PRIVATE\0"
    library = tmp_path / "lib.so"
    library.write_bytes(header + names)
    assert library_needs(library) == ("aarch64", (2, 34))


def test_what_is_no_library_is_refused(tmp_path: Path):
    path = tmp_path / "lib.so"
    path.write_bytes(b"GLIBC_2.36" * 20)
    with pytest.raises(PackageError, match=r"lib\.so is no native library"):
        library_needs(path)


@pytest.mark.parametrize(
    ("text", "version"), [("2.36", (2, 36)), ("", ()), ("of any version", ()), ("9" * 9999, None)]
)
def test_version_is_read_of_any_text(text: str, version: tuple[int, ...] | None):
    found = version_of(text)
    assert version is None or found == version
