"""What a served model runs its batches on."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import ConfigError, PackageError, ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Description, Runner, RunnerAround, Variant
from moh_deploy.runtime.models import PackageDir
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.serving import source
from moh_deploy.serving.genai.bundle import PACKAGE_FOLDER, GenaiBundle
from moh_deploy.serving.http import server
from moh_deploy.serving.source import OneModel, open_model, require_known_answer, require_own_code
from moh_deploy.serving.triton.bundle_json import BUNDLE_NAME
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.system.npz import Array
from tests.damaged_library import write_damaged_library
from tests.edge_case_package import inputs, write_edge_package
from tests.half_packages import write_unprotected
from tests.handmade_package import vectors, write_package
from tests.kernel_library import required_library
from tests.nightly import sampled
from tests.routed_package import Fault, write_routed
from tests.serving.triton.bundles import bundle_of_handmade, replace_whole, rewrite_bundle

WAY = Variant(threads=1)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_edge_package(tmp_path_factory.mktemp("edge") / "package")


def test_a_small_model_is_read_in_a_session_of_its_own_with_the_same_answers(package: OnnxPackage):
    model = open_model(PackageDir(package.root), package.gate_names, WAY)
    # Nothing is declared where nobody reads.
    assert set(model.runner.outputs) == {"y"}
    plain = model.run(inputs(), ("y",), ())
    read = model.run(inputs(), ("y",), package.gate_names)
    assert set(plain.results) == {"y"}
    assert set(read.results) == {"y", *package.gate_names}
    assert plain.results["y"].tobytes() == read.results["y"].tobytes()
    model.close()


def test_only_runs_of_which_inner_values_are_wanted_are_read():
    class Named(Runner):
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            return dict.fromkeys(("y", "gates", self.name), np.zeros(1))

        def run_returning(
            self, inputs: Mapping[str, Array], outputs: Sequence[str]
        ) -> dict[str, Array]:
            return self.run(inputs)

        def describe(self) -> Description:
            raise NotImplementedError

    model = OneModel(Named("plain"), Named("read"))
    assert "plain" in model.run({}, ("y",), ()).results
    assert "read" in model.run({}, ("y",), ("gates",)).results


def test_a_large_model_is_in_memory_once(package: OnnxPackage, monkeypatch: pytest.MonkeyPatch):
    size = package.model_path.stat().st_size
    monkeypatch.setattr(source, "MOST_BYTES_TWICE", size - 1)
    model = open_model(PackageDir(package.root), package.gate_names, WAY)
    assert model.reading is None
    assert set(model.run(inputs(), ("y",), package.gate_names).results) > set(package.gate_names)
    monkeypatch.setattr(source, "MOST_BYTES_TWICE", size)
    assert open_model(PackageDir(package.root), package.gate_names, WAY).reading is not None


def test_a_model_whose_inner_values_nobody_wants_is_opened_once(package: OnnxPackage):
    assert open_model(PackageDir(package.root), (), WAY).reading is None


# A model that was opened has to answer a recorded run as `verify` has it, before it serves.


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    folder = tmp_path_factory.mktemp("half")
    whole = write_routed(folder / "float32")
    return OnnxPackage.open(
        moh_deploy.precision(whole.root, to="float16", output=folder / "float16").package
    )


def opened(package: OnnxPackage, way: Variant = WAY, inner: tuple[str, ...] = ()) -> None:
    open_model(PackageDir(package.root, package), inner, way).close()


@sampled(3)
@pytest.mark.parametrize(
    "fault",
    [
        "swapped shared and routed heads",
        "wrong scale",
        "one gate off by 1 %",
        "dropped mask",
        "top_k off by one",
        "stale weights",
    ],
)
def test_wrong_model_is_refused(tmp_path: Path, fault: Fault):
    package = write_routed(tmp_path / "package", fault)
    with pytest.raises(ValidationError, match="answers a recorded run wrongly, so it is not serv"):
        opened(package)


@pytest.mark.parametrize("is_large", [False, True], ids=["small", "large"])
def test_what_answers_is_tried_and_the_sentence_says_what_is_wrong(
    tmp_path: Path, is_large: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(source, "MOST_BYTES_TWICE", 0 if is_large else 2**20)
    package = write_package(tmp_path / "package", scale=1.01)
    with pytest.raises(ValidationError) as refused:
        opened(package)
    message = refused.value.message
    assert message.startswith(f"package {package.root} answers a recorded run wrongly")
    assert "output 'y' of vectors 0 (batch=2, seq=3), routing forced differs by 0." in message
    assert "tolerance 0.0" in message
    assert f"`moh-deploy verify {package.root}" in str(refused.value)


class Wrong(RunnerAround):
    """A runner whose outputs are 1 % too large."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: array * np.float32(1.01) for name, array in self.runner.run(inputs).items()}


def test_the_session_that_answers_is_tried_beside_the_one_that_shows_gates(tmp_path: Path):
    package = write_package(tmp_path / "package")
    model = PackageDir(package.root, package)
    with model.open(WAY) as answering, model.open(WAY.returning(package.gate_names)) as reading:
        require_known_answer(model, WAY, answering, reading)
        with pytest.raises(ValidationError, match="output 'y'"):
            require_known_answer(model, WAY, Wrong(answering), reading)


def test_a_tie_that_goes_the_other_way_is_no_wrong_answer(tmp_path: Path):
    package = write_routed(tmp_path / "package", "other tie order", tied=True)
    model = open_model(PackageDir(package.root, package), (), WAY)
    asked = package.vectors[0].inputs
    with PackageDir(package.root, package).open(WAY) as untried:
        expected = untried.run(asked)["y"]
    np.testing.assert_array_equal(model.run(asked, ("y",), ()).results["y"], expected)
    model.close()


def test_damaged_kernels_are_refused_and_named(tmp_path: Path):
    package = write_package(tmp_path / "package")
    library = write_damaged_library(tmp_path / "lib.so")
    opened(package)
    with pytest.raises(ValidationError, match="recorded run wrongly") as refused:
        opened(package, replace(WAY, library=library))
    assert f"--kernels off` passes, the kernel library {library} is at fault" in str(refused.value)


def test_the_run_of_the_example_is_tried(tmp_path: Path):
    right, other = vectors(), vectors(seq=5, seed=1)
    wrong = replace(other, outputs={"y": other.outputs["y"] * 1.01})
    opened(write_package(tmp_path / "right", sets=(right, wrong)))
    with pytest.raises(ValidationError, match=r"of vectors 0 \(batch=2, seq=5\)"):
        opened(write_package(tmp_path / "wrong", sets=(wrong, right)))


def test_a_noise_floor_is_measured_where_it_decides_and_of_small_models(
    half: OnnxPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    float32 = write_routed(tmp_path / "float32", "wrong scale")
    wrong = write_unprotected(float32, tmp_path / "float16")
    wrong = replace(wrong, manifest=replace(wrong.manifest, rounding=None))
    measured = []
    monkeypatch.setattr(PackageVariants, "noisy", lambda *_: measured.append(True))
    opened(half)
    assert not measured
    with pytest.raises(ValidationError):
        opened(wrong)
    assert measured
    measured.clear()
    monkeypatch.setattr(source, "MOST_MEASURED", wrong.model_path.stat().st_size - 1)
    with pytest.raises(ValidationError):
        opened(wrong)
    assert not measured


def test_package_without_recorded_runs_is_refused(tmp_path: Path):
    package = write_package(tmp_path / "package", sets=())
    with pytest.raises(ValidationError, match="holds no recorded run"):
        opened(package)


# Bundles from strangers: native code of another installation runs by --trust-code alone.


STRANGER = b"\x7fELF and the code of a stranger"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    required_library()
    return bundle_of_handmade(tmp_path_factory.mktemp("own"))


@pytest.fixture
def bundle(own: Path, tmp_path: Path) -> Path:
    return shutil.copytree(own, tmp_path / "bundle")


@pytest.fixture
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


@pytest.mark.usefixtures("served")
def test_check_loads_no_library_of_others(bundle: Path):
    path = bundle / other_library(bundle)
    path.write_bytes(required_library().read_bytes() + b" ")  # a real one, and not ours
    replace_whole(bundle, path.relative_to(bundle).as_posix(), path.read_bytes())
    found = {finding.what: finding.found for finding in moh_deploy.check_bundle(bundle).findings}
    assert found["instruction sets"] == "not asked: the library is of another installation"


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("key", ["audit_log", "control", "policy", "shadow", "reference"])
@pytest.mark.parametrize("place", ["/etc/motd", "../outside"])
def test_bundle_names_no_files_outside_of_it(bundle: Path, key: str, place: str):
    settings = json.loads((bundle / BUNDLE_NAME).read_text())["settings"]
    rewrite_bundle(bundle, {"settings": {**settings, "guard": True, key: place}})
    with pytest.raises(PackageError, match=rf"names '{place}', expected a path in the bundle"):
        moh_deploy.serve(bundle)


@pytest.mark.usefixtures("served")
def test_genai_runs_no_code_of_others(tmp_path: Path):
    (tmp_path / PACKAGE_FOLDER).mkdir()
    (tmp_path / PACKAGE_FOLDER / "model.onnx.data").write_bytes(STRANGER)
    bundle = GenaiBundle("", library=None, shares_buffer=False, versions={})
    (tmp_path / BUNDLE_NAME).write_text(to_json_text(asdict(bundle)))
    with pytest.raises(ConfigError, match=r"package/model\.onnx\.data is 'native code"):
        moh_deploy.verify_genai_bundle(tmp_path)
    with pytest.raises(PackageError, match="manifest"):  # trusted, and no package
        moh_deploy.verify_genai_bundle(tmp_path, trust_code=True)


def test_files_that_are_no_code_need_no_trust_and_those_beside_them_do(tmp_path: Path):
    (tmp_path / "empty").touch()
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "folder").mkdir()
    require_own_code(tmp_path, trust_code=False)
    other_name(tmp_path / "folder")
    with pytest.raises(ConfigError, match=r"weights\.bin is 'native code"):
        require_own_code(tmp_path, trust_code=False)
