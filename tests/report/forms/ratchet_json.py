"""The form of `ratchet` in what `moh-deploy verify --json` and `bench --json` print."""

from __future__ import annotations

from typing import Literal

from tests.report.forms.json_types import JsonObject, Number


class RatchetEntryJson(JsonObject):
    group: str
    name: str
    outcome: Literal["held", "better", "worse", "gone", "new", "not compared"]
    was: Number | None
    now: Number | None
    limit: Number | None
    sentence: str


class RatchetJson(JsonObject):
    file: str
    entries: list[RatchetEntryJson]
    updated: bool
    passed: bool
    reasons: list[str]
