"""JSON that we wrote ourselves, read back into types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

_STRICT = {"extra": "forbid", "strict": True, "ser_json_inf_nan": "strings"}


class Strict:
    """Base of what pydantic decodes from JSON: no key too many, no number hidden in a string."""

    __pydantic_config__: ClassVar[Mapping[str, object]] = _STRICT
