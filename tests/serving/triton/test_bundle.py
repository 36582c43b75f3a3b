from __future__ import annotations

import ctypes
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.graph.write_choices import write_choices
from moh_deploy.runtime.open_runner import find_deployed
from moh_deploy.serving import ServingSettings
from moh_deploy.serving.drift.reference import profile_of, write_reference
from moh_deploy.serving.triton.bundle import BundleOptions, write_bundle
from moh_deploy.serving.triton.bundle_json import read_bundle
from moh_deploy.serving.triton.bundled_guard import settings_at
from moh_deploy.serving.triton.opened_bundle import open_bundle
from tests.handmade_package import vectors, write_package
from tests.kernel_library import required_library
from tests.nightly import nightly
from tests.runtime.tensorrt.engines import MANIFEST as ENGINE_MANIFEST
from tests.runtime.tensorrt.engines import write_engine
from tests.serving.drift.traffic import requests, window
from tests.serving.mixing_package import write_mixing
from tests.serving.triton.bundles import (
    bundle_of_handmade,
    damaged_bundle,
    replace_whole,
    rewrite_bundle,
)

OPTIONS = BundleOptions(ServingSettings("m"))


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
    assert "dims: [ 3, 8 ]" in text


@pytest.mark.parametrize(
    ("operator", "batches"), [("ReduceMean", "max_batch_size: 0"), (None, "dynamic_batching")]
)
def test_the_servers_own_backend_joins_only_what_is_independent(
    tmp_path: Path, operator: str | None, batches: str
):
    package = tmp_path / "package"
    if operator is None:
        write_package(package)
    else:
        write_mixing(package, operator, ["batch", 2])
    write_bundle(find_deployed(package), tmp_path / "b", replace(OPTIONS, backend="onnxruntime"))
    text = (tmp_path / "b/repository/m/config.pbtxt").read_text()
    assert batches in text
    assert ("dynamic_batching" in text) == (operator is None)
    # It would fire for ever: that backend counts no routing.
    assert "MohRoutingUnseen" not in (tmp_path / "b/alerts.yaml").read_text()


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
def test_changed_file_is_refused_and_no_library_loaded(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
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
    write_bundle(find_deployed(tmp_path / "package"), root, OPTIONS)
    assert read_bundle(root).settings.name == "m"
    assert not (root / "repository/handmade").exists()
    (root / "notes.txt").write_text("mine")
    with pytest.raises(PackageError, match=r"holds 'notes\.txt', which is not part of a bundle"):
        write_bundle(find_deployed(tmp_path / "package"), root, OPTIONS)


def test_failure_leaves_nothing_behind(tmp_path: Path):
    package = write_package(tmp_path / "package").root
    (package / "model.onnx").write_bytes(b"damaged")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PackageError, match="has changed since the package was written"):
        write_bundle(find_deployed(package), tmp_path / "bundle", OPTIONS)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["", "../m", "a/b", ".hidden", "ü", "a b"])
def test_name_that_is_no_directory_is_refused(tmp_path: Path, name: str):
    model = find_deployed(write_package(tmp_path / "package").root)
    options = replace(OPTIONS, settings=ServingSettings(name))
    with pytest.raises(ConfigError, match=r"name is '.*', expected letters"):
        write_bundle(model, tmp_path / "bundle", options)


def test_version_that_triton_does_not_read_is_refused(tmp_path: Path):
    model = find_deployed(write_package(tmp_path / "package").root)
    options = replace(OPTIONS, settings=ServingSettings("m", version="v2"))
    with pytest.raises(ConfigError, match="version is 'v2', expected a number from 1 on"):
        write_bundle(model, tmp_path / "bundle", options)


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
    write_bundle(model, tmp_path / "bundle", replace(OPTIONS, reference=path))
    assert (tmp_path / "bundle/reference.json").read_bytes() == path.read_bytes()
    written = read_bundle(tmp_path / "bundle")
    assert "reference.json" in written.files
    assert settings_at(written.settings, tmp_path).reference == str(tmp_path / "reference.json")
    write_reference(path, profile_of(window(requests(150, seed=0)), window=64, rate=0.01))
    with pytest.raises(ConfigError, match=r"good\.json is of another package"):
        write_bundle(model, tmp_path / "bundle", replace(OPTIONS, reference=path))


# The server's own ONNX Runtime.


def test_native_model_is_the_packages_where_nothing_has_to_travel(tmp_path: Path):
    root = bundle_of_handmade(tmp_path, backend="onnxruntime")
    model = root / "repository/handmade/1/model.onnx"
    assert model.read_bytes() == (tmp_path / "package/model.onnx").read_bytes()
    text = (root / "repository/handmade/config.pbtxt").read_text()
    assert f'op_library_filename: "{required_library().name}"' in text


def test_native_model_carries_its_compute_type_and_weights(tmp_path: Path):
    package = write_package(tmp_path / "package", compute_type="bfloat16", external_data=True)
    options = BundleOptions(ServingSettings("m"), "onnxruntime")
    write_bundle(find_deployed(package.root), tmp_path / "bundle", options)
    folder = tmp_path / "bundle/repository/m/1"
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    model = onnx.load(folder / "model.onnx")
    (node,) = [one for one in model.graph.node if one.op_type == "MoHAttention"]
    (told,) = [one.s for one in node.attribute if one.name == "compute_type"]
    assert told == b"bfloat16"


def test_package_of_another_runtime_is_not_for_the_servers_own_backend(tmp_path: Path):
    package = write_package(tmp_path / "package")
    write_choices(package, package.manifest.layers, tmp_path / "tuned", runtime="openvino")
    options = BundleOptions(ServingSettings("m"), "onnxruntime")
    with pytest.raises(ConfigError, match="was tuned for openvino, and Triton's backend") as no:
        write_bundle(find_deployed(tmp_path / "tuned"), tmp_path / "bundle", options)
    assert "--backend python serves it" in str(no.value.hint)
    assert not (tmp_path / "bundle").exists()
    # Of ONNX Runtime itself it says nothing new.
    write_choices(package, package.manifest.layers, tmp_path / "here", runtime="onnxruntime")
    write_bundle(find_deployed(tmp_path / "here"), tmp_path / "bundle", options)


# Engines.


def test_engine_is_for_the_tensorrt_backend(tmp_path: Path):
    engine = write_engine(tmp_path / "engine")
    bundle = write_bundle(find_deployed(engine), tmp_path / "bundle", OPTIONS)
    assert bundle.backend == "tensorrt"
    assert bundle.max_batch == 32  # the most of any profile
    text = (tmp_path / "bundle" / bundle.config).read_text()
    assert 'default_model_filename: "package/model.engine"' in text
    assert 'profile: [ "0", "1" ]' in text
    served = tmp_path / "bundle" / bundle.served
    assert set(ENGINE_MANIFEST.files) <= {path.name for path in served.iterdir()}


@pytest.mark.parametrize(
    ("make", "backend"), [(write_engine, "python"), (write_package, "tensorrt")]
)
def test_backend_that_cannot_run_the_model_is_refused(tmp_path: Path, make, backend):
    make(tmp_path / "model")
    options = BundleOptions(ServingSettings("m"), backend)
    with pytest.raises(ConfigError, match=f"backend is '{backend}', but"):
        write_bundle(find_deployed(tmp_path / "model"), tmp_path / "bundle", options)
