import ctypes
import json
import os
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moh_deploy import native
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving.drift.reference import profile_of, write_reference
from moh_deploy.serving.guard.guard_io import Control, write_control
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.triton.bundle import write_bundle
from moh_deploy.serving.triton.bundle_json import (
    BundleReport,
    bundled_model,
    open_bundle,
    read_bundle,
)
from moh_deploy.serving.triton.check import Finding, examine_bundle
from moh_deploy.serving.triton.config_pbtxt import parse_config
from tests.handmade_package import vectors, write_package
from tests.kernel_library import required_library
from tests.nightly import nightly
from tests.runtime.tensorrt.engines import MANIFEST as ENGINE_MANIFEST
from tests.runtime.tensorrt.engines import write_engine
from tests.serving.drift.traffic import requests, window
from tests.serving.triton.bundles import (
    bundle_of_handmade,
    damaged_bundle,
    replace_whole,
    rewrite_bundle,
)

SETTINGS = ServingSettings("m")


def test_bundle_has_what_a_server_and_those_around_it_need(tmp_path: Path):
    library = required_library()
    root = bundle_of_handmade(tmp_path)
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert files == {
        "bundle.json",
        "repository/handmade/config.pbtxt",
        "repository/handmade/1/model.py",
        "repository/handmade/1/package/manifest.json",
        "repository/handmade/1/package/model.onnx",
        "repository/handmade/1/package/vectors.npz",
        "repository/handmade/warmup/0-0",
        f"lib/{library.name}",
        "probe.py",
        "probe.request",
        "supervise.py",
        "dashboard.json",
        "alerts.yaml",
        "kserve.yaml",
    }
    assert set(read_bundle(root).files) == files - {"bundle.json"}


def test_warmup_is_a_recorded_sample(tmp_path: Path):
    root = bundle_of_handmade(tmp_path)
    written = (root / "repository/handmade/warmup/0-0").read_bytes()
    assert written == vectors().inputs["x"][0].tobytes()
    text = (root / "repository/handmade/config.pbtxt").read_text()
    assert "batch_size: 2" in text
    assert "dims: [3, 8]" in text


def test_moved_bundle_answers_as_the_package_does(tmp_path: Path):
    root = bundle_of_handmade(tmp_path)
    moved = tmp_path / "else where" / "b"
    moved.parent.mkdir()
    shutil.move(root, moved)
    shutil.rmtree(tmp_path / "package")
    recorded = vectors()
    served = open_bundle(moved)
    outputs = served.answer(recorded.inputs).outputs
    library = served.describe().kernels.library
    served.close()
    assert library == moved / "lib" / required_library().name
    np.testing.assert_allclose(outputs["y"], recorded.outputs["y"], rtol=1e-5, atol=1e-6)


def test_bundle_that_lost_its_kernels_is_not_served_without(tmp_path: Path):
    root = bundle_of_handmade(tmp_path)
    shutil.rmtree(root / "lib")
    with pytest.raises(PackageError, match=r"libmoh_ort_cpu\.so is missing"):
        open_bundle(root)


@pytest.mark.parametrize("guard", [False, True], ids=["bare", "guarded"])
def test_damaged_kernels_with_a_right_digest_are_found_by_the_known_answer(
    tmp_path: Path, guard: bool
):
    root = damaged_bundle(tmp_path, has_digest=True, guard=guard)
    with pytest.raises(ValidationError) as refused:
        open_bundle(root)
    assert "answers a recorded run wrongly, so it is not served: output 'y'" in str(refused.value)
    library = root / "lib" / required_library().name
    assert f"the kernel library {library} is at fault" in str(refused.value)


@pytest.mark.parametrize(
    "name", ["lib/libmoh_ort_cpu.so", "repository/handmade/1/package/manifest.json"]
)
def test_changed_file_is_refused_and_no_library_loaded(tmp_path: Path, name: str, monkeypatch):
    root = bundle_of_handmade(tmp_path)
    replace_whole(root, name, (root / name).read_bytes() + b" ", repairs_digest=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail(f"{name} is loaded"))
    with pytest.raises(PackageError, match="has changed since it was written") as refused:
        open_bundle(root)
    assert str(refused.value).startswith(str(root / name))


def test_library_without_a_digest_is_refused(tmp_path: Path):
    root = bundle_of_handmade(tmp_path)
    files = {name: digest for name, digest in read_bundle(root).files.items() if "lib" not in name}
    rewrite_bundle(root, {"files": files})
    with pytest.raises(PackageError, match=r"libmoh_ort_cpu\.so has changed"):
        open_bundle(root)


def test_no_file_names_a_place_of_the_machine(tmp_path: Path):
    root = bundle_of_handmade(tmp_path)
    for path in root.rglob("*"):
        # The library has the paths of its sources in it, which nobody opens.
        if path.is_file() and path.suffix != ".so":
            assert str(tmp_path).encode() not in path.read_bytes(), path


def test_earlier_bundle_is_replaced_and_nothing_else(tmp_path: Path):
    root = bundle_of_handmade(tmp_path)
    write_bundle(find_deployed(tmp_path / "package"), root, SETTINGS)
    assert read_bundle(root).settings.name == "m"
    assert not (root / "repository/handmade").exists()
    (root / "notes.txt").write_text("mine")
    with pytest.raises(PackageError, match=r"holds 'notes\.txt', which is not part of a bundle"):
        write_bundle(find_deployed(tmp_path / "package"), root, SETTINGS)


def test_failure_leaves_nothing_behind(tmp_path: Path):
    package = write_package(tmp_path / "package").root
    (package / "model.onnx").write_bytes(b"damaged")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PackageError, match="has changed since the package was written"):
        write_bundle(find_deployed(package), tmp_path / "bundle", SETTINGS)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            (ServingSettings(name), "name is")
            for name in ("", "../m", "a/b", ".hidden", "ü", "a b")
        ),
        (ServingSettings("m", version="v2"), "version is 'v2', expected a number from 1 on"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_name_or_version_that_triton_does_not_read_is_refused(
    tmp_path: Path, settings: ServingSettings, message: str
):
    model = find_deployed(write_package(tmp_path / "package").root)
    with pytest.raises(ConfigError, match=message):
        write_bundle(model, tmp_path / "bundle", settings)


def test_bundle_of_another_version_of_moh_deploy_is_not_opened(tmp_path: Path):
    root = bundle_of_handmade(tmp_path)
    versions = {**read_bundle(root).versions, "moh-deploy": "0.0.9"}
    rewrite_bundle(root, {"versions": versions})
    with pytest.raises(PackageError, match=r"was written by moh-deploy 0\.0\.9"):
        open_bundle(root)


@nightly
def test_routing_profile_comes_along_if_it_is_of_this_package(tmp_path: Path):
    package = write_package(tmp_path / "package")
    model, path = find_deployed(package.root), tmp_path / "good.json"
    digest = package.manifest.files["model.onnx"]
    write_reference(path, profile_of(window(requests(150, seed=0), digest), window=64, rate=0.01))
    write_bundle(model, tmp_path / "bundle", replace(SETTINGS, reference=str(path)))
    assert (tmp_path / "bundle/reference.json").read_bytes() == path.read_bytes()
    written = read_bundle(tmp_path / "bundle")
    assert "reference.json" in written.files
    _, settings = bundled_model(tmp_path / "bundle")
    assert settings.reference == str(tmp_path / "bundle" / "reference.json")
    write_reference(path, profile_of(window(requests(150, seed=0)), window=64, rate=0.01))
    with pytest.raises(ConfigError, match=r"good\.json is of another package"):
        write_bundle(model, tmp_path / "bundle", replace(SETTINGS, reference=str(path)))


# Engines.


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library by which a server gets an engine's plugins, where the installation has it."""
    path = tmp_path / "native" / "libmoh_plugin_registered.so"
    path.parent.mkdir()
    shutil.copyfile(required_library(), path)
    monkeypatch.setattr(native, "FOLDER", path.parent)
    return path


def bundle_of_engine(folder: Path, **options: Any) -> Path:
    engine = write_engine(folder / "engine", **options)
    write_bundle(find_deployed(engine), folder / "bundle", SETTINGS)
    return folder / "bundle"


def test_engine_is_for_the_tensorrt_backend(tmp_path: Path):
    root = bundle_of_engine(tmp_path)
    bundle = read_bundle(root)
    assert bundle.backend == "tensorrt"
    assert bundle.max_batch == 32  # the most of any profile
    config = parse_config((root / bundle.config).read_text())
    assert (root / bundle.version / config.default_model_filename).is_file()
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert set(ENGINE_MANIFEST.files) <= {path.name for path in (root / bundle.served).iterdir()}
    assert "MohRoutingUnseen" not in (root / "alerts.yaml").read_text()


def test_plugins_of_an_engine_are_in_the_bundle_by_a_path_that_holds(
    tmp_path: Path, registered: Path
):
    root = bundle_of_engine(tmp_path, plugin=registered)
    start = BundleReport.of(root, read_bundle(root)).start
    moved = tmp_path / "moved here"
    shutil.move(root, moved)
    ran = run_start(tmp_path, start.replace(str(root), shlex.quote(str(moved))))
    assert ran["--model-repository"] == moved / "repository"
    library = ran["--backend-config"]
    assert library == moved / "lib" / registered.name
    # It registers the library beside it.
    assert library.with_name("libmoh_plugin.so").read_bytes() == registered.read_bytes()
    kserve = (moved / "kserve.yaml").read_text()
    assert f"--backend-config=tensorrt,plugins=/mnt/models/lib/{registered.name}\n" in kserve


def run_start(folder: Path, line: str) -> dict[str, Path]:
    """Run a printed line, whose server writes down what it is given; return its paths."""
    program = folder / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\npwd > '{folder}/given'; printf '%s\\n' \"$@\" >> '{folder}/given'\n"
    )
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["sh", "-c", line], check=True, env={**os.environ, "PATH": path})
    working, *options = (folder / "given").read_text().splitlines()
    values = (option.partition("=") for option in options)
    found = {name: Path(working, value.rpartition("plugins=")[2]) for name, _, value in values}
    assert all(path.exists() for path in found.values()), found
    return {name: path.resolve() for name, path in found.items()}


def test_engine_that_holds_its_plugins_is_started_with_leave_to_load_them(tmp_path: Path):
    root = bundle_of_engine(tmp_path, embedded=True)
    start = BundleReport.of(root, read_bundle(root)).start
    assert start.endswith("--backend-config=tensorrt,version-compatible=true")
    assert Finding("kernels", "in the engine", None) in examine_bundle(root).findings
    assert not (root / "lib").exists()


def test_engine_whose_plugins_no_server_could_load_is_refused(tmp_path: Path, monkeypatch):
    library = required_library()
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"libmoh_plugin_registered\.so: it is missing in") as no:
        bundle_of_engine(tmp_path, plugin=library)
    assert "--embed-plugin" in str(no.value.hint)


def test_engine_of_another_tensorrt_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="is of tensorrt-rtx, and Triton's backend loads"):
        bundle_of_engine(tmp_path, manifest=replace(ENGINE_MANIFEST, backend="tensorrt-rtx"))
    assert not (tmp_path / "bundle").exists()


def test_engine_has_no_guard(tmp_path: Path):
    engine = find_deployed(write_engine(tmp_path / "engine"))
    for beside in ({"guard": True}, {"shadow": "s"}, {"reference": "r.json"}):
        with pytest.raises(ConfigError, match="'tensorrt' does not run"):
            write_bundle(engine, tmp_path / "bundle", replace(SETTINGS, **beside))


@pytest.mark.parametrize(
    ("make", "backend"), [(write_engine, "python"), (write_package, "tensorrt")]
)
def test_backend_that_cannot_run_the_model_is_refused(tmp_path: Path, make, backend):
    make(tmp_path / "model")
    with pytest.raises(ConfigError, match=f"backend is '{backend}', but"):
        write_bundle(
            find_deployed(tmp_path / "model"), tmp_path / "bundle", SETTINGS, backend=backend
        )


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
    with pytest.raises(ConfigError, match="has 0 levels of kind package"):
        written(tmp_path, fallback, guard=True, policy=policy)
