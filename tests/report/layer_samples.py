"""Reports made up for pages of `inspect` and `tune`: of any number of layers."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from moh_deploy.graph.layer_nodes import LayerNodes
from moh_deploy.package import Manifest, Tuning
from moh_deploy.perf.cost_model.milliseconds import Platform
from moh_deploy.perf.cost_model.prediction import predict, speed_by_share
from moh_deploy.perf.inspect_report import InspectReport
from moh_deploy.perf.timing import Ratio
from moh_deploy.perf.tune.report import TuneReport
from moh_deploy.runtime.layer_runs import LayerRun
from moh_deploy.validate.compare.routing_statistics import RecordedLoad
from tests.handmade_package import LAYER, MANIFEST
from tests.report.test_reports import KERNELS

HEADS, TOKENS = 8, 4 * 1024
NODES = LayerNodes("MoHAttention")
# Here dense wins where most heads are open.
PLATFORM = Platform("avx2", runtime="openvino")


def manifest_of(layers: int, prefix: str = "blocks") -> Manifest:
    """Return a manifest of layers of 8 heads of which 2 are shared, and 5 are open."""
    layer = replace(
        LAYER,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=128,
        num_shared_heads=2,
        top_k=3,
        router="top_k",
        reason=None,
        batch=4,
        seq_len=1024,
        kv_len=1024,
        active_share=5 / HEADS,
        choice="sparse",
    )
    named = (
        replace(layer, path=f"{prefix}.{index}.attn", active_share=(4 + index % 3) / HEADS)
        for index in range(layers)
    )
    dims = {"batch": 4, "seq": 1024}
    return replace(MANIFEST, layers=tuple(named), dims=dims, total_flops=layers * 10**11)


def inspected(layers: int = 3, prefix: str = "blocks") -> InspectReport:
    """Return what `inspect` says of layers that all run on a kernel."""
    manifest = manifest_of(layers, prefix)
    nodes = (NODES,) * layers
    draw = np.random.default_rng(0)

    def load(path: str) -> RecordedLoad:
        routed = draw.integers(0, TOKENS + 1, HEADS - 2)
        return RecordedLoad(path, 2, TOKENS, (TOKENS, TOKENS, *map(int, routed)))

    return InspectReport(
        package=Path("build/model"),
        manifest=manifest,
        layer_runs=tuple(LayerRun(layer.path, "kernel", "kernel") for layer in manifest.layers),
        layer_nodes=nodes,
        predictions=tuple(predict(layer, NODES, PLATFORM) for layer in manifest.layers),
        runtime="ONNX Runtime 1.32.0",
        kernels=KERNELS,
        head_loads=tuple(load(layer.path) for layer in manifest.layers),
        speed=speed_by_share(manifest.layers, nodes, PLATFORM),
    )


def tuned(layers: int = 3, prefix: str = "blocks") -> TuneReport:
    """Return what `tune` measured at two sizes: the last layer is unsure, and slower than dense."""
    before = manifest_of(layers, prefix).layers
    times = [
        ({"dense": 4.0, "sparse": 2.0 + index}, {"dense": 1.0, "sparse": 0.9})
        for index in range(layers)
    ]
    tuning = Tuning(
        source="measured",
        machine="a processor, 2 cores, avx2",
        runtime="ONNX Runtime 1.32.0",
        threads=1,
        clock="CPU",
        sizes=({"batch": 4, "seq": 256}, {"batch": 4, "seq": 64}),
        weights=(1.0, 3.0),
        layer_ms=tuple(times),
        model_ms=({"dense": 20.0, "chosen": 16.0}, {"dense": 5.0, "chosen": 5.1}),
        undecided=(before[-1].path,),
    )
    ratios = ({"dense": Ratio(0.8, 0.78, 0.83)}, {"dense": Ratio(1.02, 1.01, 1.03)})
    return TuneReport(
        package=Path("build/model"),
        before=before,
        layers=before,
        tuning=tuning,
        asked={},
        predicted_gains=(1.3,) * layers,
        model_ratio=Ratio(0.87, 0.85, 0.9),
        model_ratios=ratios,
        dense_was_faster=(),
        ranges_did_not_pay=False,
        max_abs_error=1e-6,
        flipped_tokens={},
        kernels=KERNELS,
        written=True,
        speed=speed_by_share(before, (NODES,) * layers, PLATFORM),
    )
