"""Which candidate runs a layer: by planted times, or by the table where there are none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import moh_deploy
from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.runtime.tensorrt import device_work, worker
from moh_deploy.runtime.tensorrt.build_process import BuildProcess
from moh_deploy.runtime.tensorrt.candidate_networks import candidate_requests, estimated_choice
from moh_deploy.runtime.tensorrt.candidates import (
    AttentionCandidates,
    AttentionWay,
    ChosenWay,
    choose,
    unknown_sizes,
)
from moh_deploy.runtime.tensorrt.device_work import time_in_turns
from moh_deploy.runtime.tensorrt.engine_graph import PackageGraph, read_graph
from moh_deploy.runtime.tensorrt.flavour import find_plugin
from moh_deploy.runtime.tensorrt.messages import BuildAnswer, Fill, TimingAnswer, TimingRequest
from moh_deploy.runtime.tensorrt.profiles import Span, make_profiles
from moh_deploy.system.progress import SilentProgress
from tests.cuda.trt import builds
from tests.cuda.trt.packages import FORMS, export
from tests.nightly import nightly
from tests.runtime.tensorrt.engines import plan_of
from tests.trt_packages import other_keys, required_rtx, write_changed

NO_LIBRARY: Mapping[AttentionWay, str] = {"kernel": "there is no plugin library"}


def _candidates(
    name: str = "first",
    *,
    queries: int | str = 2048,
    head_dim: int = 128,
    dtype: str = "float16",
    share: float = 0.75,
    op: str = "MoHAttention",
    why_not: Mapping[AttentionWay, str] | None = None,
) -> AttentionCandidates:
    query = TensorInfo("q", dtype, ("batch", queries, 8 * head_dim))
    return AttentionCandidates(
        layer=name,
        node=name,
        op=op,
        why_not=why_not or {},
        query=query,
        inputs=(query,),
        fills={"q": "random"},
        num_heads=8,
        open_share=share,
        key=name,
    )


def _no_estimate(one: AttentionCandidates) -> ChosenWay:
    raise AssertionError("it was timed")


def _chosen(times: dict[str, tuple[float, ...]], **options: object) -> ChosenWay:
    one = _candidates(**options)
    found = choose([one], measure=lambda _: TimingAnswer(times), estimate=_no_estimate)
    return found["first"]


@pytest.mark.parametrize("fastest", ["kernel", "fused", "function"])
def test_the_fastest_that_was_timed_runs(fastest: AttentionWay):
    times = {way: (0.01 if way == fastest else 0.02,) for way in ("kernel", "fused", "function")}
    chosen = _chosen(times)
    assert chosen.way == fastest
    assert chosen.times_ms == times
    assert chosen.decision == "fastest of 3 timed here"


def test_every_profile_counts_alike():
    """One run of the large profile is as long as a thousand of the small one."""
    times = {"kernel": (0.01, 11.0), "fused": (0.02, 10.0)}
    assert _chosen(times).way == "kernel"


def test_layers_that_are_alike_are_timed_once():
    layers = [_candidates("a"), replace(_candidates("b"), key="a"), _candidates("c")]
    asked: list[str] = []

    def measure(one: AttentionCandidates) -> TimingAnswer:
        asked.append(one.layer)
        return TimingAnswer({"kernel": (1.0,), "fused": (2.0,)})

    found = choose(layers, measure=measure, estimate=_no_estimate)
    assert asked == ["a", "c"]
    assert {node: item.way for node, item in found.items()} == dict.fromkeys("abc", "kernel")


def test_what_cannot_be_timed_is_no_choice():
    answer = TimingAnswer({"fused": (0.2,), "function": (0.1,)}, {"kernel": "no engine was built"})
    found = choose([_candidates()], measure=lambda _: answer, estimate=_no_estimate)["first"]
    assert found.way == "function"
    assert found.decision == ("fastest of 2 timed here; kernel was not timed: no engine was built")


def test_where_nothing_could_be_timed_the_estimate_says_why():
    answer = TimingAnswer({}, {"kernel": "the driver failed"})
    found = choose(
        [_candidates()],
        measure=lambda _: answer,
        estimate=lambda _: ChosenWay("fused", "by a table"),
    )["first"]
    assert (found.way, found.times_ms) == ("fused", {})
    assert found.decision == "by a table; kernel was not timed: the driver failed"


def test_one_candidate_is_neither_timed_nor_estimated():
    one = _candidates(why_not={"fused": "its scale is -1", "function": "kernels are required"})
    found = choose([one], measure=_no_estimate, estimate=_no_estimate)["first"]
    assert found.decision == (
        "the only candidate (no fused: its scale is -1; no function: kernels are required)"
    )


# ---- by the table


def _estimated(
    *targets: str, profiles: tuple[dict[str, Span], ...] = (), **options: object
) -> tuple[AttentionWay, str]:
    chosen = estimated_choice(_candidates(**options), profiles=profiles, targets=targets)
    assert "not measured" in chosen.decision
    assert not chosen.times_ms
    return chosen.way, chosen.decision


@pytest.mark.parametrize(
    ("target", "head_dim", "share", "way"),
    [
        ("8.0", 64, 0.8, "kernel"),
        ("8.0", 64, 0.85, "fused"),
        ("8.9", 128, 0.85, "kernel"),
        ("9.0", 64, 0.75, "kernel"),
        ("9.0", 65, 0.75, "fused"),
        ("9.0", 128, 0.45, "kernel"),
        ("10.0", 64, 0.25, "fused"),  # nobody estimated it
    ],
)
def test_estimates_go_by_architecture_head_and_open_share(
    target: str, head_dim: int, share: float, way: AttentionWay
):
    found, decision = _estimated(target, head_dim=head_dim, share=share)
    assert found == way
    assert target in decision


def test_the_kernel_has_to_be_right_for_every_gpu():
    assert _estimated("8.9", "8.0", share=0.85)[0] == "fused"
    way, decision = _estimated("8.9", "8.0", share=0.8)
    assert way == "kernel"
    assert "0.80 of the gates open; the kernel is as fast up to 0.80, on 8.0" in decision


@pytest.mark.parametrize(("most", "way"), [(256, "kernel"), (257, "fused")])
def test_few_queries_run_by_the_kernel_whatever_is_open(most: int, way: AttentionWay):
    profiles = tuple({"batch": Span(1, 1, 1), "seq": Span(1, opt, 4096)} for opt in (1, most))
    assert _estimated("9.0", profiles=profiles, queries="seq", share=1.0)[0] == way


@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({"dtype": "float32", "share": 1.0}, "kernel"),
        ({"op": "MoHAggregatedAttention", "share": 1.0}, "kernel"),
        ({"why_not": NO_LIBRARY}, "fused"),
        ({"why_not": NO_LIBRARY, "dtype": "float32"}, "function"),
        ({"why_not": {**NO_LIBRARY, "fused": "its scale is -1"}}, "function"),
        ({"why_not": {"fused": "its scale is -1"}, "share": 1.0}, "function"),
    ],
)
def test_other_rules_of_the_table(options: dict[str, object], way: AttentionWay):
    assert _estimated("9.0", **options)[0] == way


def test_sizes_that_no_dimension_gives_are_told():
    assert unknown_sizes(_candidates(queries="seq"), ["batch", "seq"]) is None
    found = unknown_sizes(_candidates(queries="?"), ["batch", "seq"])
    assert found == "q is ['batch', '?', 1024]"


# The network of each candidate, of one node, as TensorRT-RTX builds it.


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
        spans = make_profiles(profiles, package.manifest)
        plan = plan_of(package, "tensorrt-rtx", profiles=spans, targets=("8.6",), library=library)
        read = read_graph(package, plan.profiles, no_plugins=None)
        log = tmp_path / "timing.log"
        answers: Answers = {}
        with BuildProcess(plan.flavour, folder=tmp_path, log=log) as process:
            for candidate in read.candidates:
                folder = tmp_path / candidate.layer
                folder.mkdir()
                requests = candidate_requests(read.model, candidate, plan, folder)
                answers[candidate.layer] = {
                    way: process.build(request, SilentProgress())
                    for way, request in requests.items()
                }
        return read, answers

    return built


def _assert_of_its_kind(read: PackageGraph, answers: Answers, folder: Path) -> None:
    for candidate in read.candidates:
        found = answers[candidate.layer]
        assert tuple(found) == candidate.possible
        for way, answer in found.items():
            assert answer.errors == ()
            assert answer.engine_bytes, f"{candidate.layer}: {way}"
            assert answer.plugins == ((candidate.node,) if way == "kernel" else ())
            assert answer.attentions == _attentions(folder / candidate.layer / f"{way}.onnx")
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
    assert [candidate.possible for candidate in read.candidates] == [
        ("kernel", "fused", "function")
    ]


@nightly
@pytest.mark.parametrize("form", FORMS)
def test_candidates_of_the_forms_of_models(
    built: Callable[..., tuple[PackageGraph, Answers]], tmp_path: Path, form: str
):
    """A mask and few key/value heads in LLaMA, aggregated attention in ViT, a dynamic batch."""
    read, answers = built(export(FORMS[form], tmp_path))
    _assert_of_its_kind(read, answers, tmp_path)
    ops = {candidate.op: candidate.possible for candidate in read.candidates}
    # ViT's mask of windows is in float32, its queries are in float16: TensorRT's attention is out.
    fused = () if form == "vit" else ("fused",)
    assert ops["MoHAttention"] == ("kernel", *fused, "function")
    assert ops.get("MoHAggregatedAttention", ("kernel", "function")) == ("kernel", "function")
    # Layers of a form are alike, or of two kinds.
    assert len({candidate.key for candidate in read.candidates}) == len(ops)


# Times of calls that take turns, by a planted clock. Engines: tests/api/test_build_tensorrt.py.


class Planted:
    """A clock that a call lets go on, and that may be disturbed in some rounds."""

    def __init__(self, **times: float) -> None:
        self.now, self.order = 0.0, []
        self.calls = {name: self._call(name, ms) for name, ms in times.items()}
        self.disturbed: Callable[[int], bool] = lambda reading: False
        self.readings = 0

    def _call(self, name: str, ms: float) -> Callable[[], None]:
        def call() -> None:
            self.order.append(name)
            self.now += ms

        return call

    def clock(self, call: Callable[[], None], count: int) -> float:
        start = self.now
        for _ in range(count):
            call()
        self.readings += 1
        return (self.now - start) * (100 if self.disturbed(self.readings) else 1)


def test_each_call_has_the_time_of_one_run():
    planted = Planted(a=0.5, b=0.002)
    found = time_in_turns(planted.calls, planted.clock)
    assert found == {"a": pytest.approx(0.5), "b": pytest.approx(0.002)}


def test_calls_take_turns():
    planted = Planted(a=10.0, b=10.0)
    time_in_turns(planted.calls, planted.clock)
    after_warm_up = planted.order[2 * device_work._WARM_UP_RUNS :]
    assert after_warm_up == ["a", "b"] * device_work._ROUNDS


def test_a_round_that_is_disturbed_does_not_count():
    planted = Planted(a=1.0, b=2.0)
    planted.disturbed = lambda reading: reading % 3 == 0
    found = time_in_turns(planted.calls, planted.clock)
    assert found == {"a": pytest.approx(1.0), "b": pytest.approx(2.0)}


@pytest.mark.parametrize(
    ("fill", "mean", "values"),
    [
        ("gates", 0.25, {0, 1}),
        ("seen", 1, {1}),
        ("zero", 0, {0}),
        ("random", 0, None),
        ("filled", 2**30, {2**30}),  # lengths beyond the last key
        ("ranges", 2**29, {0, 2**30}),
    ],
)
def test_what_inputs_hold(fill: Fill, mean: float, values: set[float] | None):
    is_position = fill in ("filled", "ranges")
    dtype = SimpleNamespace(name="INT64" if is_position else "HALF")
    engine = SimpleNamespace(get_tensor_dtype=lambda name: dtype)
    request = TimingRequest({}, {"x": fill}, open_share=0.25)
    found = worker._feeds(engine, request, {"x": (4, 100, 2)})["x"]
    assert (found.shape, found.dtype) == ((4, 100, 2), "q" if is_position else "e")
    assert found.mean(dtype=np.float64) == pytest.approx(mean, abs=0.05)
    assert values is None or set(np.unique(found)) == values
