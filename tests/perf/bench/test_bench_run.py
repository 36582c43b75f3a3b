"""A difference from a baseline that is the same model: told apart from tokens that chose others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import pytest

from moh_deploy.package import OnnxPackage, VectorSet
from moh_deploy.perf.bench.bench_run import FaultFinder
from moh_deploy.perf.bench.candidates import BenchSetting, Candidates, find_candidates
from moh_deploy.perf.bench.measured import Agreement
from moh_deploy.runtime.base import Runner, Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.runtime.original import Original
from moh_deploy.system.npz import Array
from moh_deploy.validate.reference.input_sets import InputSet
from moh_deploy.validate.reference.reference import Answers
from moh_deploy.validate.reference.samples import Sample
from tests.fake_original import FakeOriginal
from tests.handmade_package import vectors, write_package

DIFFERS = Agreement(1.0, 1e-4, "output 'y' differs.")
RUN = vectors(batch=5)
TIMED = InputSet("random", RUN.sizes, RUN.inputs, 1.0)


@dataclass
class Remembered(FakeOriginal):
    """It computes what it is told to."""

    known: VectorSet = RUN

    def answers(self, package: OnnxPackage, samples: Sequence[Sample]) -> Answers:
        return Answers((self.known,), has_gates=True)

    def run(self, arguments: Sequence[Array]) -> list[Array]:
        return list(self.known.outputs.values())


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_package(tmp_path / "package")


def candidates(package: OnnxPackage) -> Candidates:
    return find_candidates(BenchSetting("auto", 1, None, package.root.parent), [package.root], [])


def fault(found: Candidates, baseline: str, original: Original | None = None) -> str | None:
    """Return what is found where a baseline differs."""
    outputs = {str(found.first.root): list(RUN.outputs.values())}
    faults = FaultFinder(found, original).in_timed_run(TIMED, outputs, {baseline: DIFFERS})
    return faults.get(str(found.first.root))


@pytest.mark.parametrize("baseline", ["dense", "functions", "fixed-routing:blocks.0.attn"])
def test_difference_that_only_flips_can_have_made_is_no_fault(package: OnnxPackage, baseline: str):
    assert fault(candidates(package), baseline) is None


def test_package_that_differs_from_its_function_bodies_is_wrong(package: OnnxPackage, monkeypatch):
    def double(graph: onnx.GraphProto) -> None:
        graph.node[-1].input[0], graph.node[-1].op_type = graph.node[-1].input[1], "Add"

    def broken(source: OnnxPackage, variant: Variant) -> Runner:
        return open_runner(source, variant.edited(double))

    monkeypatch.setattr("moh_deploy.validate.reference.reference.open_runner", broken)
    why = fault(candidates(package), "dense")
    assert why.startswith("against function bodies with optimisations off (not the original model)")
    assert fault(candidates(package), "build/last-release") is None


@pytest.mark.parametrize("baseline", ["eager", "plain-onnx"])
def test_package_that_differs_from_its_original_is_wrong(package: OnnxPackage, baseline: str):
    lines = candidates(package)
    assert fault(lines, baseline, Remembered()) is None
    other = Remembered(known=replace(RUN, outputs={"y": RUN.outputs["y"] + 1}))
    assert "against original model it is not equal" in str(fault(lines, baseline, other))
    of_other = replace(lines.first.manifest, checkpoint_sha256="2" * 64)
    lines = replace(lines, first=replace(lines.first, manifest=of_other))
    assert fault(lines, baseline, replace(other, sha256="1" * 64)) is None
