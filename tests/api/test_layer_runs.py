"""inspect, run, verify and the proof of an export say the same of each layer."""

import json
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

import moh_deploy
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.layer_runs import LayerImpl, LayerRun
from moh_deploy.runtime.onnxruntime.session import Placement
from moh_deploy.system.bounded_json import to_json_text
from moh_deploy.system.npz import write_npz
from moh_deploy.validate.compare.verify_runs import Way, prove
from tests.handmade_package import vectors
from tests.kernel_library import required_library
from tests.nightly import nightly
from tests.two_layers import FIRST, ROUTER, SECOND, write_two_layers

MIXED: dict[str, LayerImpl] = {FIRST: "kernel", SECOND: "function", ROUTER: "kernel"}


@dataclass
class Jobs:
    """The jobs that report on a package."""

    folder: Path

    def reports(self, package: OnnxPackage, kernels: Kernels) -> dict[str, object]:
        names = ("in.npz", "again.npz", "out.npz")
        inputs, again, outputs = (self.folder / name for name in names)
        for path in (inputs, again):
            write_npz(path, vectors().inputs)
        return {
            "inspect": moh_deploy.inspect(package.root, kernels=kernels),
            "run": moh_deploy.run(package.root, inputs=inputs, outputs=outputs, kernels=kernels),
            "verify": moh_deploy.verify(package.root, kernels=kernels),
            # Several comparisons, joined.
            "verify files": moh_deploy.verify(
                package.root, inputs=[inputs, again], kernels=kernels
            ),
        }

    def layer_runs(self, package: OnnxPackage, kernels: Kernels) -> dict[str, object]:
        return {name: report.layer_runs for name, report in self.reports(package, kernels).items()}


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


@pytest.fixture
def package(tmp_path: Path) -> OnnxPackage:
    return write_two_layers(tmp_path / "package")


def in_each_report(*runs: LayerRun) -> dict[str, object]:
    return dict.fromkeys(["inspect", "run", "verify", "verify files"], runs)


@pytest.mark.parametrize(
    ("kernels", "runs_as"),
    [pytest.param("off", "function", marks=nightly), ("require", "kernel")],
)
def test_one_way_of_running_is_reported_of_each_layer(
    jobs: Jobs, package: OnnxPackage, kernels: Kernels, runs_as: LayerImpl
):
    required_library()
    runs = (
        LayerRun("blocks.0.attn", runs_as, None),
        LayerRun("blocks.1.attn", runs_as, runs_as),
    )
    assert jobs.layer_runs(package, kernels) == in_each_report(*runs)
    assert prove(package.root, [Way(kernels)])[0].layer_runs == runs


def test_layers_that_a_session_runs_in_different_ways_are_told_apart(
    jobs: Jobs, package: OnnxPackage, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Placement, "read", lambda self, session: MIXED)
    reports = jobs.reports(package, "auto")
    others = {"projections_run_as": None, "by_size": None}
    expected = [
        {"path": "blocks.0.attn", "runs_as": "kernel", "router_runs_as": None, **others},
        {"path": "blocks.1.attn", "runs_as": "function", "router_runs_as": "kernel", **others},
    ]
    for name in ("run", "verify", "verify files"):
        content = json.loads(to_json_text(reports[name].to_json()))
        assert content["layer_runs"] == expected, name
        assert (content["kernel_nodes"], content["function_nodes"]) == (2, 1), name
    layers = json.loads(to_json_text(reports["inspect"].to_json()))["layers"]
    assert [{key: layer[key] for key in expected[0]} for layer in layers] == expected


def test_model_file_is_not_parsed_whole(package: OnnxPackage, monkeypatch: pytest.MonkeyPatch):
    """It may hold a gigabyte of weights."""
    parsed: list[Path] = []
    load = onnx.load

    def spy(path: Path, **options: object) -> onnx.ModelProto:
        parsed.append(Path(path))
        return load(path, **options)

    monkeypatch.setattr(onnx, "load", spy)
    moh_deploy.inspect(package.root)
    assert package.model_path not in parsed
