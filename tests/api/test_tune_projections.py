"""The choice with projections, from measuring to running."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import pytest

import moh_deploy
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.layer_runs import LayerRun
from tests.kernel_library import required_library
from tests.nightly import sampled
from tests.projected_package import ATTENTION, OUTPUT, QUERY, write_projected

PATH = "blocks.0.attn"
DOMAINS = {
    "dense": ("moh.dense", "moh.dense", "moh.dense"),
    "sparse": ("moh.dense", "moh", "moh.dense"),
    "projected": ("moh", "moh", "moh"),
}
RUNS = {"dense": ("dense", "dense"), "sparse": ("kernel", "dense"), "projected": ("kernel",) * 2}


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_projected(tmp_path / "package")


def domains(package: OnnxPackage) -> tuple[str, ...]:
    nodes = {node.name: node.domain for node in onnx.load(package.model_path).graph.node}
    return tuple(nodes[name] for name in (QUERY, ATTENTION, OUTPUT))


def test_package_is_equal_before_anybody_chose(package: OnnxPackage):
    assert moh_deploy.verify(package.root).equal


@sampled(2)
@pytest.mark.parametrize("choice", ["dense", "sparse", "projected"])
def test_every_choice_can_be_measured_and_run(package: OnnxPackage, choice: str):
    required_library()

    def measure(
        what: str, contestants: Mapping[str, Callable[[], object]]
    ) -> dict[str, tuple[float, ...]]:
        for call in contestants.values():
            call()
        if what == PATH:
            assert list(contestants) == ["nothing", "dense", "sparse", "projected"]
        ms = {"nothing": 0.0, choice: 1.0, "chosen": 1.0}
        return {name: (ms.get(name, 2.0),) * 7 for name in contestants}

    report = moh_deploy.tune(package.root, measure=measure)
    assert [layer.choice for layer in report.layers] == [choice]
    assert domains(package) == DOMAINS[choice]
    assert moh_deploy.verify(package.root, kernels="require").equal
    assert moh_deploy.verify(package.root, kernels="off").equal
    runs = moh_deploy.inspect(package.root, kernels="require").layer_runs
    assert runs == (LayerRun(PATH, RUNS[choice][0], None, RUNS[choice][1]),)


def test_choices_come_back_to_where_they_began(package: OnnxPackage):
    moh_deploy.tune(package.root, choose={"all": "projected"})
    once = package.model_path.read_bytes()
    for choice in ("sparse", "dense", "projected"):
        moh_deploy.tune(package.root, choose={"all": choice})
        assert domains(package) == DOMAINS[choice]
    assert package.model_path.read_bytes() == once


def test_projections_are_part_of_what_is_predicted(package: OnnxPackage):
    (prediction,) = moh_deploy.inspect(package.root).predictions
    assert prediction is not None
    assert list(prediction.ms) == ["dense", "sparse", "projected"]
    assert list(prediction.break_even) == ["sparse", "projected"]
