"""The form of `accuracy` in what `moh-deploy verify --json` prints."""

from __future__ import annotations

from typing import Literal

from tests.report.forms.json_types import Count, JsonObject, Number


class AccuracyRuleJson(JsonObject):
    max_drop: Number | None
    max_relative_drop: Number
    min_samples: Count
    reason: str


class ChangedSampleJson(JsonObject):
    sample: Count
    file: str
    reference_score: Number
    package_score: Number
    label: int | None
    reference_class: int | None
    package_class: int | None


class AccuracyJson(JsonObject):
    metric: str
    output: str | None
    better: Literal["higher", "lower"]
    samples: Count
    labels: Count
    ignored: Count
    shifted: bool
    against: str
    reference: Number
    package: Number
    difference: Number
    interval: list[Number] | None
    confidence: Number
    resamples: Count
    seed: Count
    smoothed: bool
    worse: Count
    improved: Count
    p_value: Number | None
    rule: AccuracyRuleJson
    allowed_drop: Number
    changed: list[ChangedSampleJson]
    verdict: Literal["passed", "failed", "cannot tell"]
    reason: str | None
