"""The form of `moh-deploy verify --json`: what readers may rely on."""

from __future__ import annotations

from typing import Literal

from pydantic import TypeAdapter

from tests.report.forms.accuracy_json import AccuracyJson
from tests.report.forms.json_types import Count, ErrorJson, FailureJson, Number
from tests.report.forms.json_types import JsonObject as _Object
from tests.report.forms.ratchet_json import RatchetJson


class RuleJson(_Object):
    relative: Number
    near_tie: Number
    reason: str
    relative_after_flip: Number | None
    floor_factor: Number
    peak_factor: Number
    least: Number


class OutputJson(_Object):
    reference: str
    name: str
    vectors: str
    max_abs_error: Number
    max_rel_error: Number
    tolerance: Number | None
    reason: str | None
    floor: Number | None
    forced: bool
    elements: Count | None
    rms_error: Number | None
    rms_tolerance: Number | None


class LayerJson(_Object):
    reference: str
    path: str
    vectors: str
    decisions: Count
    equal_decisions: Count
    flipped_tokens: Count
    excused_tokens: Count
    gate_error: Number
    gate_tolerance: Number
    reason: str | None
    forced: bool
    free_flips: Count | None
    agreement: Number | None
    jaccard: Number | None
    smallest_margin: Number | None
    flip_margin: Number | None
    margin_bound: Number | None
    score_error: Number | None
    score_tolerance: Number | None
    attention_error: Number | None
    attention_tolerance: Number | None
    undecided_tokens: Count
    judged_by: Literal["choices", "scores", "nothing"]
    wrong: list[Literal["scores", "choice", "gates", "attention"]]


class LayerRunJson(_Object):
    path: str
    runs_as: str | None
    router_runs_as: str | None
    projections_run_as: str | None
    by_size: str | None


class HeadLoadJson(_Object):
    path: str
    num_shared_heads: Count | None
    tokens: Count
    reference: list[Count]
    got: list[Count]


class MarginBinJson(_Object):
    at_least: Number
    below: Number
    tokens: Count
    explained: Count
    unexplained: Count


class MarginHistogramJson(_Object):
    path: str
    bound: Number
    bins: list[MarginBinJson]


class ClassLoadJson(_Object):
    path: str
    num_shared_heads: Count | None
    classes: list[str]
    samples: list[Count]
    tokens: list[Count]
    on: list[list[Count]]


class StatisticsJson(_Object):
    head_loads: list[HeadLoadJson]
    margins: list[MarginHistogramJson]
    class_loads: list[ClassLoadJson]


class TokenCountJson(_Object):
    name: str
    tokens: Count
    left_out: Count


class ComparisonJson(_Object):
    """One side with one reference. Outputs and layers say by `reference` to which they belong."""

    subject: str
    reference: str
    equal: bool
    has_routing: bool
    vector_sets: Count
    max_abs_error: Number
    routing_agreement: Number | None
    notes: list[str]
    reasons: list[str]
    tokens: TokenCountJson | None


class ParityJson(_Object):
    """A comparison."""

    schema_version: Literal[1]
    equal: bool
    max_abs_error: Number
    routing_agreement: Number | None
    reference: str
    vector_sets: Count
    kernel_nodes: Count
    function_nodes: Count
    layer_runs: list[LayerRunJson]
    kernels: dict[str, str | None]
    policy: str
    rules: dict[str, RuleJson]
    notes: list[str]
    reasons: list[str]
    comparisons: list[ComparisonJson]
    outputs: list[OutputJson]
    layers: list[LayerJson]
    statistics: StatisticsJson
    ratchet: RatchetJson | None
    accuracy: list[AccuracyJson]


class VerifyJson(ParityJson):
    """What `moh-deploy verify --json` prints if it comes to an answer.

    `error` is there if the answer is no. A run without an answer prints an object that holds
    nothing else.
    """

    package: str
    error: ErrorJson | None = None


VERIFY_JSON: TypeAdapter[VerifyJson | FailureJson] = TypeAdapter(VerifyJson | FailureJson)
"""All that it prints: docs/verify.schema.json is the schema of it."""
