"""JSON for machines. Python's own encoder writes a bare NaN, which other readers refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence


def to_json_text(content: Mapping[str, object]) -> str:
    """Encode plain JSON types; NaN and infinities become strings, as "NaN" and "-Infinity"."""
    return json.dumps(_finite(content), indent=2, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
