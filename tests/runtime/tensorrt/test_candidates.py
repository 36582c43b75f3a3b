"""Which candidate runs a layer: by planted times, or by the table where there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from moh_deploy.package import TensorInfo
from moh_deploy.runtime.tensorrt.candidate_networks import estimated_choice
from moh_deploy.runtime.tensorrt.candidates import (
    AttentionCandidates,
    AttentionWay,
    ChosenWay,
    choose,
    unknown_sizes,
)
from moh_deploy.runtime.tensorrt.messages import TimingAnswer
from moh_deploy.runtime.tensorrt.profiles import Span

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
    assert {node: one.way for node, one in found.items()} == dict.fromkeys("abc", "kernel")


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
    assert "nobody measured" in chosen.decision
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
    assert "0.80 of the gates are open; the kernel is as fast up to 0.80, on 8.0" in decision


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
