"""The network of each candidate, of one node, as TensorRT-RTX builds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest

import moh_deploy
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.tensorrt.build_plan import BuildPlan, flavour_of
from moh_deploy.runtime.tensorrt.build_process import BuildProcess
from moh_deploy.runtime.tensorrt.candidate_networks import candidate_requests
from moh_deploy.runtime.tensorrt.engine_graph import PackageGraph, read_graph
from moh_deploy.runtime.tensorrt.flavour import find_plugin
from moh_deploy.runtime.tensorrt.messages import BuildAnswer
from moh_deploy.runtime.tensorrt.profiles import make_profiles
from moh_deploy.system.progress import SilentProgress
from tests.cuda.trt import builds
from tests.cuda.trt.packages import FORMS, export
from tests.nightly import nightly
from tests.trt_packages import other_keys, required_rtx, write_changed

Answers = dict[str, dict[str, BuildAnswer]]


@pytest.fixture
def built(tmp_path: Path) -> Callable[..., tuple[PackageGraph, Answers]]:
    """Lowers a package to float16, and builds the networks of all its candidates."""
    required_rtx()
    library = find_plugin(builds.plugin_on_fakes())

    def built(
        root: Path, *, profiles: Sequence[str] = (), precision: str | None = "float16"
    ) -> tuple[PackageGraph, Answers]:
        if precision is not None:
            moh_deploy.precision(root, to=precision, output=tmp_path / precision)
            root = tmp_path / precision
        package = OnnxPackage.open(root)
        plan = BuildPlan(
            flavour_of("tensorrt-rtx"),
            package,
            low=None,
            profiles=make_profiles(profiles, package.manifest),
            targets=("8.6",),
            workspace_bytes=None,
            timing_cache=None,
            library=library,
            embed_plugin=False,
            keep_onnx=False,
        )
        read = read_graph(package, plan.profiles, no_plugins=None)
        log = tmp_path / "timing.log"
        answers: Answers = {}
        with BuildProcess(plan.flavour, folder=tmp_path, log=log) as process:
            for one in read.candidates:
                folder = tmp_path / one.layer
                folder.mkdir()
                requests = candidate_requests(read.model, one, plan, folder)
                answers[one.layer] = {
                    way: process.build(request, SilentProgress())
                    for way, request in requests.items()
                }
        return read, answers

    return built


def _assert_of_its_kind(read: PackageGraph, answers: Answers, folder: Path) -> None:
    for one in read.candidates:
        found = answers[one.layer]
        assert tuple(found) == one.possible
        for way, answer in found.items():
            assert answer.errors == ()
            assert answer.engine_bytes, f"{one.layer}: {way}"
            assert answer.plugins == ((one.node,) if way == "kernel" else ())
            assert answer.attentions == _attentions(folder / one.layer / f"{way}.onnx")
            assert len(answer.attentions) == (way == "fused")


def _attentions(model: Path) -> tuple[str, ...]:
    nodes = onnx.load(model).graph.node
    return tuple(node.name for node in nodes if node.op_type == "Attention")


@pytest.mark.parametrize("precision", [pytest.param(None, marks=nightly), "float16"])
def test_each_candidate_is_built_of_its_own_layers(
    built: Callable[..., tuple[PackageGraph, Answers]], tmp_path: Path, precision: str | None
):
    package = write_changed(tmp_path / "package", other_keys).root
    read, answers = built(
        package, profiles=["batch=1..2..4,seq=3..12", "batch=8"], precision=precision
    )
    _assert_of_its_kind(read, answers, tmp_path)
    assert [one.possible for one in read.candidates] == [("kernel", "fused", "function")]


@nightly
@pytest.mark.parametrize("form", FORMS)
def test_candidates_of_the_forms_of_models(
    built: Callable[..., tuple[PackageGraph, Answers]], tmp_path: Path, form: str
):
    """A mask and few key/value heads in LLaMA, aggregated attention in ViT, a dynamic batch."""
    read, answers = built(export(FORMS[form], tmp_path))
    _assert_of_its_kind(read, answers, tmp_path)
    ops = {one.op: one.possible for one in read.candidates}
    assert ops["MoHAttention"] == ("kernel", "fused", "function")
    assert ops.get("MoHAggregatedAttention", ("kernel", "function")) == ("kernel", "function")
    # Layers of a form are alike, or of two kinds.
    assert len({one.key for one in read.candidates}) == len(ops)
