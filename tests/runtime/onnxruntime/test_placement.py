from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from moh_deploy.native import kernel_library
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.runtime.layer_runs import LayerImpl
from moh_deploy.runtime.onnxruntime import placement as ort_placement
from moh_deploy.runtime.onnxruntime.placement import Placement
from moh_deploy.runtime.onnxruntime.session import open_session
from tests.handmade_package import write_package
from tests.nightly import sampled


@dataclass
class FakeNode:
    name: str
    domain: str


@dataclass
class FakeSession:
    """A session that kept these nodes, as one with a kernel library would."""

    nodes: list[FakeNode]

    def get_provider_graph_assignment_info(self) -> list[FakeSession]:
        return [self]

    def get_nodes(self) -> list[FakeNode]:
        return self.nodes


def as_session(*nodes: FakeNode) -> ort.InferenceSession:
    return cast(ort.InferenceSession, FakeSession(list(nodes)))


def test_node_that_the_session_kept_runs_on_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ort_placement, "_reports_assignment", lambda: True)
    session = as_session(FakeNode("a", "moh"), FakeNode("b", ""))
    assert Placement(["a", "b"], tmp_path).read(session) == {"a": "kernel", "b": "function"}


def test_node_that_the_written_model_kept_runs_on_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ort_placement, "_reports_assignment", lambda: False)
    kept = [
        helper.make_node("MoHAttention", ["x"], ["y"], name="a", domain="moh"),
        helper.make_node("Mul", ["y", "y"], ["z"], name="b"),
    ]
    graph = helper.make_graph(kept, "dumped", [], [])
    onnx.save(helper.make_model(graph), tmp_path / "optimized.onnx")
    assert Placement(["a", "b"], tmp_path).read(as_session()) == {"a": "kernel", "b": "function"}


@sampled(2)
@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("external_data", [True, False])
def test_older_runtime_that_writes_its_model_out_gives_the_same_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimize: bool, external_data: bool
):
    monkeypatch.setattr(ort_placement, "_reports_assignment", lambda: False)
    package = write_package(tmp_path / "package", external_data=external_data)
    told: dict[str, LayerImpl] = {}
    choices: tuple[Kernels, ...] = ("off", "auto")
    for kernels in choices:
        runner = open_session(
            package, Variant(kernels=kernels, optimize=optimize, extra_outputs=package.gate_names)
        )
        told[kernels] = runner.describe().layer_impl["blocks.0.attn/moh"]
    assert told == {"off": "function", "auto": "kernel" if kernel_library() else "function"}
