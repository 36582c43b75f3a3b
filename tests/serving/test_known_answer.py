"""A model that was opened has to answer a recorded run as `verify` has it, before it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.errors import ValidationError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Runner, RunnerAround, Variant
from moh_deploy.runtime.models import PackageDir
from moh_deploy.runtime.variants import PackageVariants
from moh_deploy.serving import source
from moh_deploy.serving.source import open_model, require_known_answer
from moh_deploy.system.npz import Array
from tests.damaged_library import write_damaged_library
from tests.half_packages import write_unprotected
from tests.handmade_package import vectors, write_package
from tests.nightly import sampled
from tests.routed_package import Fault, write_routed

WAY = Variant(threads=1)


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
    opened(write_routed(tmp_path / "package", "other tie order", tied=True))


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
