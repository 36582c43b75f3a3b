import math
from dataclasses import replace

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.perf.bench.candidate import FreshRun, Latency
from moh_deploy.perf.bench.gates import BenchGate, GateResult, parse_gate
from moh_deploy.perf.bench.measured import METRICS, Measured

MODEL = Measured(
    contestant="model",
    is_baseline=False,
    inputs="recorded",
    sizes={"batch": 4},
    samples=4,
    latency=Latency(
        runs=50, p50_ms=2.0, p90_ms=3.0, p99_ms=None, mean_ms=2.5, cpu_ms=4.0, utilisation=1.6
    ),
    fresh=FreshRun(load_ms=100.0, first_run_ms=5.0, peak_memory_bytes=3 * 2**20),
    ratios={},
)
DENSE = replace(
    MODEL, contestant="dense", is_baseline=True, latency=replace(MODEL.latency, p50_ms=1.9)
)


def gate(text: str) -> BenchGate:
    return parse_gate(text, candidates=["model", "dense"], baselines=["dense"])


def judged(text: str, model: Measured = MODEL) -> GateResult:
    return gate(text).judge(model, {"model": model, "dense": DENSE})


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ("p50 <= 1.06 * baseline", True),
        ("p50 <= 1.05 * baseline", False),
        ("p50<=1.06*dense", True),
        ("p50 < dense", False),
        ("p50 > dense", True),
        ("p50 <= model", True),
        ("p50 < model", False),
        ("p90 <= 3 ms", True),
        ("p90 < 3ms", False),
        ("p90 < 0.0031 s", True),
        ("mean <= 2500 us", True),
        ("cpu < 4 ms", False),
        ("utilisation >= 160 %", True),
        ("utilisation > 1.6", False),
        ("throughput >= 1600", True),
        ("throughput > 1600 /s", False),
        ("load <= 0.1 s", True),
        ("first_run < 5 ms", False),
        ("peak_memory <= 3 MiB", True),
        ("peak_memory <= 3 MB", False),
    ],
)
def test_gates_compare_what_was_measured(text: str, passed: bool):
    result = judged(text)
    assert result.passed is passed
    assert result.measured is not None
    assert result.limit is not None


def test_result_says_what_was_measured_and_what_was_asked():
    assert judged("p50 <= 1.05 * baseline").reason == (
        "p50 is 2 ms, asked for <= 1.995 ms (1.05 * 1.9 ms of dense)"
    )
    assert judged("peak_memory < 2 MiB").reason == "peak_memory is 3 MiB, asked for < 2 MiB"


@pytest.mark.parametrize("text", ["p99 < 1 min", "p99 > 1 us", "p99 <= 10 * dense"])
def test_what_was_not_measured_never_passes(text: str):
    result = judged(text)
    assert (result.passed, result.measured) == (False, None)
    assert result.reason == "p99 needs 100 runs, there were fewer: raise --min-time"
    measured = replace(MODEL, latency=replace(MODEL.latency, p99_ms=1.0))
    assert judged("p99 <= 10 * dense", measured).passed is False
    assert judged("p99 <= 1 ms", measured).passed is True


def test_no_number_never_passes():
    broken = replace(MODEL, latency=replace(MODEL.latency, p50_ms=math.nan))
    assert not judged("p50 <= 1 min", broken).passed
    assert not judged("p50 > 0 ms", broken).passed
    unknown = replace(MODEL, fresh=replace(MODEL.fresh, peak_memory_bytes=None))
    assert (
        judged("peak_memory < 1 GiB", unknown).reason
        == "the system does not tell it, or it cannot be loaded in a process of its own"
    )


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("p5O < 1 ms", "there is no metric 'p5O', there are p50, p90", "Did you mean 'p50'?"),
        ("p50 < 1", "gate 'p50 < 1': '1' has no unit, expected us, ms, s, min", "Example: 1 us"),
        ("p50 < 1 MiB", "'1 MiB' has the unit 'MiB', expected us, ms", None),
        (
            "p50 < 2 * desne",
            "there is no candidate 'desne', there are model",
            "Did you mean 'dense'?",
        ),
        ("p50 < 0 * dense", "the factor is 0, expected a number above 0", None),
        ("p50 == 1 ms", "'p50 == 1 ms' is no gate, expected METRIC <= ", "Examples: p50 <="),
        ("p50 <== 1 ms", "is no gate, expected METRIC", None),
        ("p50 1 ms", "is no gate, expected METRIC", None),
        ("", "'' is no gate, expected METRIC", None),
    ],
)
def test_what_is_no_gate_is_refused(text: str, message: str, hint: str | None):
    with pytest.raises(ConfigError, match=r"gate") as refused:
        gate(text)
    assert message in refused.value.message
    if hint is not None:
        assert (refused.value.hint or "").startswith(hint)


def test_baseline_is_the_only_one():
    with pytest.raises(ConfigError, match="about the baseline, but none is given") as none:
        parse_gate("p50 < baseline", candidates=["model"], baselines=[])
    assert none.value.hint == "Give one: --baseline dense."
    with pytest.raises(ConfigError, match="but there are 2: dense, other"):
        parse_gate(
            "p50 < baseline", candidates=["model", "dense", "other"], baselines=["dense", "other"]
        )


def test_contestant_may_be_called_like_a_quantity():
    found = parse_gate("p50 < 8bit", candidates=["model", "8bit"], baselines=[])
    assert (found.factor, found.other) == (1.0, "8bit")


def test_every_metric_can_be_read():
    assert {name: metric.read(MODEL) for name, metric in METRICS.items()} == {
        "p50": 2.0,
        "p90": 3.0,
        "p99": None,
        "mean": 2.5,
        "cpu": 4.0,
        "utilisation": 1.6,
        "throughput": 1600.0,
        "load": 100.0,
        "first_run": 5.0,
        "peak_memory": 3 * 2**20,
    }
