import json
import math
from pathlib import Path

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.system.bounded_json import DEEPEST, has_keys, parse_json, read_json, to_json_text


@pytest.mark.parametrize("levels", [DEEPEST + 1, 900, 100_000])
@pytest.mark.parametrize(("left", "right"), ["[]", ('{"a":', "}")])
def test_nesting_is_refused_before_anything_else_fails_at_it(levels: int, left: str, right: str):
    inner = "1" if left != "[" else ""
    text = left * levels + inner + right * levels
    with pytest.raises(PackageError, match=r"m: is not valid JSON: it is nested deeper than 100"):
        parse_json(text, "m", error=PackageError)


def test_nesting_up_to_the_limit_is_read():
    found = parse_json("[" * DEEPEST + "]" * DEEPEST, "m", error=PackageError)
    for _ in range(DEEPEST - 1):
        assert isinstance(found, list)
        (found,) = found
    assert found == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is there twice"),
        ("1" * 5000, r"Exceeds the limit \(4300 digits\)"),
        (b"\xff\xfe\x00", "codec can't decode"),
        ('{"a": ["\\ud800"]}', "surrogates not allowed"),
        ('{"a": {"\\udc00": 1}}', "surrogates not allowed"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_what_is_not_valid_is_refused(text: str | bytes, message: str):
    with pytest.raises(PackageError, match=f"m: is not valid JSON: .*{message}"):
        parse_json(text, "m", error=PackageError)


def test_endless_file_is_read_up_to_the_limit(tmp_path: Path):
    (tmp_path / "large.json").write_bytes(b" " * 1000)
    with pytest.raises(PackageError, match="holds more than 999 bytes"):
        read_json(tmp_path / "large.json", error=PackageError, most_bytes=999)


@pytest.mark.parametrize(
    ("content", "has"),
    [('{"a": 1, "b": 2}', True), ('{"a": 1}', False), ("[]", False), ("{", False)],
)
def test_keys_are_found_in_a_readable_object_only(tmp_path: Path, content: str, has: bool):
    path = tmp_path / "file.json"
    assert not has_keys(path, {"a", "b"})
    path.write_text(content)
    assert has_keys(path, {"a", "b"}) is has


def test_what_is_no_number_becomes_a_string_at_every_depth():
    text = to_json_text({"a": [math.nan, {"b": (math.inf, -math.inf)}], "c": 1.5, "d": None})
    assert "NaN" in text
    assert json.loads(text, parse_constant=lambda name: f"bare {name}") == {
        "a": ["NaN", {"b": ["Infinity", "-Infinity"]}],
        "c": 1.5,
        "d": None,
    }
