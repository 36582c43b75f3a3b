"""What the forms of JSON reports are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = float | Literal["NaN", "Infinity", "-Infinity"]
"""JSON has no form for the three."""

Count = Annotated[int, Field(ge=0)]


class JsonObject(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorJson(JsonObject):
    type: str
    message: str
    hint: str | None
    exit_code: int


class FailureJson(JsonObject):
    """What `--json` prints if a command comes to no answer."""

    error: ErrorJson
