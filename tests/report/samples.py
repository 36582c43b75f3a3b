"""Reports made up for pages: of any number of layers and heads."""

import math
from dataclasses import replace

import numpy as np

from moh_deploy.perf.bench.candidate import FreshRun, Latency, Timing
from moh_deploy.perf.bench.gates import GateResult
from moh_deploy.perf.bench.measured import LayerWork, Measured, PackageWork
from moh_deploy.perf.bench.report import BenchReport
from moh_deploy.perf.timing import ratio
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.validate.compare.parity_report import ParityReport
from moh_deploy.validate.compare.parity_result import LayerParity, OutputParity
from moh_deploy.validate.compare.routing_statistics import (
    RoutingStatistics,
    class_load,
    joined,
    layer_statistics,
)
from moh_deploy.validate.compare.tolerances import TOLERANCES
from tests.kernel_library import NO_KERNELS
from tests.validate.compare.test_parity_report import METRIC

SHARED = 2
BOUND = TOLERANCES["float16"].near_tie


def parity_report(layers: int = 3, heads: int = 6, *, wrong: int | None = None) -> ParityReport:
    """Return a report on layers of two shared heads; the router of layer `wrong` is wrong."""
    paths = [f"blocks.{i}.attn" for i in range(layers)]
    return ParityReport(
        reference="vectors recorded from the original model",
        vector_sets=1,
        outputs=(OutputParity("y", "0 (batch=4)", 1e-6, 1e-6, 1e-4, elements=400),),
        layers=tuple(_layer(path, i, is_wrong=i == wrong) for i, path in enumerate(paths)),
        has_routing=True,
        kernel_nodes=0,
        function_nodes=layers,
        layer_runs=tuple(LayerRun(path, "function", None) for path in paths),
        kernels=NO_KERNELS,
        rules={"float16": TOLERANCES["float16"]},
        statistics=joined(
            _statistics(path, heads, i, is_wrong=i == wrong) for i, path in enumerate(paths)
        ),
    )


def with_classes(report: ParityReport) -> ParityReport:
    """Return it with the loads of three classes."""
    loads = tuple(
        class_load(load.path, SHARED, _gates(len(load.got), i), np.arange(8) % 3)
        for i, load in enumerate(report.statistics.head_loads)
    )
    return replace(report, statistics=replace(report.statistics, class_loads=loads))


def with_accuracy(report: ParityReport) -> ParityReport:
    """Return it with a metric that passed, and one without a value."""
    unknown = replace(METRIC, metric="perplexity", better="lower", interval=None, package=math.nan)
    failed = replace(unknown, verdict="failed", reason="1 of 360 samples has no finite perplexity")
    return replace(report, accuracy=(METRIC, failed))


def bench_report(*, limit_ms: float = 9.0) -> BenchReport:
    """Return a package that takes 2 ms, one baseline of 4 ms, and a gate."""
    draw = np.random.default_rng(0)
    times = {
        name: tuple((ms * (1 + draw.gamma(2, 0.02, 300))).tolist())
        for name, ms in (("build/model", 2.0), ("dense", 4.0))
    }
    sizes = {"batch": 4}

    def measured(name: str) -> Measured:
        against = {} if name == "dense" else {"dense": ratio(times[name], times["dense"])}
        return Measured(
            contestant=name,
            is_baseline=name == "dense",
            inputs="recorded",
            sizes=sizes,
            samples=4,
            latency=Latency.of(Timing(times[name], times[name], times[name])),
            fresh=FreshRun(30.0, 7.0, 2**27),
            ratios=against,
        )

    results = tuple(map(measured, times))
    p50 = results[0].latency.p50_ms
    gate = f"p50 < {limit_ms:g} ms"
    reason = f"p50 is {p50:.5g} ms, asked for < {limit_ms:g} ms"
    layer = LayerWork("blocks.0.attn", "sparse", "kernel", 60, 96, 0.625, {}, "sparse")
    return BenchReport(
        results=results,
        work=(PackageWork("build/model", "recorded", sizes, (layer,)),),
        gates=(
            GateResult(
                gate, "build/model", "recorded", sizes, p50, limit_ms, p50 < limit_ms, reason
            ),
        ),
        samples_by="batch",
        threads=1,
        min_time_s=5.0,
        warmup_s=0.5,
        machine="a processor, 2 cores, avx2",
        runtime="ONNX Runtime 1.32.0",
        kernels=NO_KERNELS,
    )


def _layer(path: str, index: int, *, is_wrong: bool) -> LayerParity:
    reason = f"gates of layer '{path}' in vectors 0: 5 of 56 tokens choose other heads."
    return LayerParity(
        path=path,
        vectors="0 (batch=4)",
        decisions=300,
        equal_decisions=290 if is_wrong else 300,
        flipped_tokens=5 if is_wrong else 0,
        excused_tokens=0,
        gate_error=0.5 if is_wrong else index * 1e-6,
        gate_tolerance=1e-4,
        reason=reason if is_wrong else None,
        agreement=0.97 if is_wrong else 1.0,
        jaccard=0.95 if is_wrong else 1.0,
        smallest_margin=1e-3,
        flip_margin=0.3 if is_wrong else None,
        margin_bound=BOUND,
    )


def _gates(heads: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    gates = np.random.default_rng(seed).standard_normal((8, 7, heads)).astype(np.float32)
    gates = np.maximum(gates, 0)  # [B, S, H]
    gates[..., :SHARED] = 1
    return gates


def _statistics(path: str, heads: int, seed: int, *, is_wrong: bool) -> RoutingStatistics:
    gates = _gates(heads, seed)
    margins = 10.0 ** np.random.default_rng(seed).uniform(-4, 0, gates.shape[:-1])
    margins[0, 0], margins[0, 1] = 0.0, math.inf
    got = gates.copy()
    if is_wrong:
        got[:2, :, SHARED:] = gates[:2, :, SHARED:][..., ::-1]
    flipped = np.asarray(((got != 0) != (gates != 0)).any(axis=-1))
    return layer_statistics(path, SHARED, got, gates, margins.astype(np.float32), BOUND, flipped)
