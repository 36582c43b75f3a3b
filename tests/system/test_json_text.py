from __future__ import annotations

import json
import math

from moh_deploy.system.bounded_json import to_json_text


def test_what_is_no_number_becomes_a_string_at_every_depth():
    text = to_json_text({"a": [math.nan, {"b": (math.inf, -math.inf)}], "c": 1.5, "d": None})
    assert "NaN" in text
    assert json.loads(text, parse_constant=lambda name: f"bare {name}") == {
        "a": ["NaN", {"b": ["Infinity", "-Infinity"]}],
        "c": 1.5,
        "d": None,
    }
