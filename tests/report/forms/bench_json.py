"""The form of `moh-deploy bench --json`: what readers may rely on."""

from __future__ import annotations

from typing import Literal

from pydantic import TypeAdapter

from tests.report.forms.json_types import Count, ErrorJson, FailureJson, Number
from tests.report.forms.json_types import JsonObject as _Object
from tests.report.forms.ratchet_json import RatchetJson


class GateJson(_Object):
    gate: str
    contestant: str
    inputs: str
    sizes: dict[str, int]
    measured: Number | None
    limit: Number | None
    passed: bool
    reason: str


class IntervalJson(_Object):
    value: Number
    low: Number
    high: Number


class AgreementJson(_Object):
    max_abs_error: Number
    tolerance: Number | None
    reason: str | None


class ResultJson(_Object):
    contestant: str
    is_baseline: bool
    inputs: str
    sizes: dict[str, int]
    samples: Count
    runs: Count
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    mean_ms: float
    cpu_ms: float
    sorted_ms: list[float]
    utilisation: float
    throughput: float
    load_ms: float | None
    first_run_ms: float | None
    peak_memory_bytes: Count | None
    agreement: AgreementJson | None
    fault: str | None
    ratios: dict[str, IntervalJson]


class LayerWorkJson(_Object):
    path: str
    choice: str | None
    runs_as: str | None
    rows_computed: Count
    rows_dense: Count
    active_share: float
    break_even: dict[str, float | None]
    predicted_fastest: str | None


class WorkJson(_Object):
    contestant: str
    inputs: str
    sizes: dict[str, int]
    layers: list[LayerWorkJson]


class RoutingJson(_Object):
    contestant: str
    layer: str | None
    inputs: str
    sizes: dict[str, int]
    wall_ms: IntervalJson | None
    cpu_ms: IntervalJson | None
    share: float | None
    reason: str | None


class BenchJson(_Object):
    """What `moh-deploy bench --json` prints if everything was measured.

    `error` is there if a gate did not pass. A run that did not measure prints an object that holds
    nothing else.
    """

    schema_version: Literal[1]
    passed: bool | None
    gates: list[GateJson]
    ratchet: RatchetJson | None
    results: list[ResultJson]
    work: list[WorkJson]
    routing: list[RoutingJson]
    findings: list[str]
    samples_by: str | None
    threads: int | None
    min_time_s: float
    warmup_s: float
    machine: str
    runtime: str
    kernels: dict[str, str | None]
    notes: list[str]
    error: ErrorJson | None = None


BENCH_JSON: TypeAdapter[BenchJson | FailureJson] = TypeAdapter(BenchJson | FailureJson)
"""All that it prints: docs/bench.schema.json is the schema of it."""
