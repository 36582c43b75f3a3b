"""The form of `moh-deploy bisect --json`: what readers may rely on."""

from __future__ import annotations

from typing import Literal

from pydantic import TypeAdapter

from moh_deploy.validate.bisection.locate import Cause
from tests.report.forms.json_types import Count, ErrorJson, FailureJson, Number
from tests.report.forms.json_types import JsonObject as _Object
from tests.report.forms.parity_json import ParityJson


class PlaceJson(_Object):
    node: str
    op: str
    module: str
    value: str


class NodeErrorJson(PlaceJson):
    before: Number
    behind: Number


class KeptNodeJson(PlaceJson):
    reason: str


class RecordedJson(_Object):
    what: str
    value: str
    error: Number
    limit: Number
    reason: str | None


class CheckpointJson(_Object):
    """A recorded value that agrees and is not `exact` proves nothing."""

    what: str
    value: str
    agrees: bool
    exact: bool


class BetweenJson(_Object):
    """One of `nodes` is wrong, or one of `unseen`: `after` agree to rounding, `before` is wrong."""

    after: list[str]
    before: str
    nodes: list[PlaceJson]
    unseen: list[PlaceJson]


class DivergenceJson(_Object):
    cause: Cause
    against: str | None
    module: str | None
    node: PlaceJson | None
    beyond_rounding: bool
    first: NodeErrorJson | None
    step: NodeErrorJson | None
    differences: list[str]
    suspects: list[PlaceJson]
    wrong: list[RecordedJson]
    checkpoints: list[CheckpointJson]
    between: BetweenJson | None


class RepairJson(_Object):
    nodes: list[KeptNodeJson]
    smallest: bool
    runs: Count
    weights: str
    bytes_before: Count
    bytes_after: Count
    flops_share: Number | None
    parity: ParityJson
    written: str | None


class BisectJson(_Object):
    """What `moh-deploy bisect --json` prints if it comes to an answer.

    `error` is there if something diverges and no repaired package was written. A run without an
    answer prints an object that holds nothing else.
    """

    schema_version: Literal[1]
    package: str
    precision: str
    reference: str
    diverges: bool
    repaired: bool
    sentence: str
    reasons: list[str]
    target: Number | None
    passes_verify: bool
    divergence: DivergenceJson | None
    errors: list[NodeErrorJson]
    repair: RepairJson | None
    why_no_repair: str | None
    notes: list[str]
    error: ErrorJson | None = None


BISECT_JSON: TypeAdapter[BisectJson | FailureJson] = TypeAdapter(BisectJson | FailureJson)
"""All that it prints: docs/bisect.schema.json is the schema of it."""
