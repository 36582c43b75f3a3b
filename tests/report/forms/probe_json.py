"""The form of `moh-deploy probe --json`: what readers may rely on."""

from __future__ import annotations

from typing import Literal

from pydantic import TypeAdapter

from moh_deploy.validate.edge_cases.case_result import Kind, Status
from tests.report.forms.json_types import Count, ErrorJson, FailureJson, Number
from tests.report.forms.json_types import JsonObject as _Object
from tests.report.forms.parity_json import LayerRunJson


class CaseJson(_Object):
    kind: Kind
    case: str
    place: str
    status: Status
    detail: str


class MinedTokenJson(_Object):
    layer: str
    token: list[Count]
    margin: Number


class MinedSampleJson(_Object):
    name: str
    tokens: list[MinedTokenJson]


class MiningJson(_Object):
    searched: Count
    choices: Count
    too_large: Count
    layers_without_margins: list[str]
    samples: list[MinedSampleJson]


class CorpusJson(_Object):
    samples: Count
    bytes: Count
    recorded_from: list[str]
    smallest_margin: Number | None
    written: bool


class ProbeJson(_Object):
    """What `moh-deploy probe --json` prints if it comes to an answer.

    `error` is there if the answer is no. A run without an answer prints an object that holds
    nothing else.
    """

    schema_version: Literal[1]
    package: str
    passed: bool
    counts: dict[Status, Count]
    reasons: list[str]
    results: list[CaseJson]
    mining: MiningJson | None
    corpus: CorpusJson
    reference: str
    policy: str
    layer_runs: list[LayerRunJson]
    kernels: dict[str, str | None]
    error: ErrorJson | None = None


PROBE_JSON: TypeAdapter[ProbeJson | FailureJson] = TypeAdapter(ProbeJson | FailureJson)
"""All that it prints: docs/probe.schema.json is the schema of it."""
