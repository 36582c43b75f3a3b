"""JSON of ours, decoded into dataclasses."""

from dataclasses import dataclass

import pytest

from moh_deploy.config.strict_json import Strict, decode_strict
from moh_deploy.errors import ConfigError


@dataclass(frozen=True)
class Inner(Strict):
    size: int


@dataclass(frozen=True)
class Outer(Strict):
    parts: tuple[Inner, ...]
    name: str = "n"


def test_content_becomes_the_dataclass():
    found = decode_strict(Outer, {"parts": [{"size": 3}]}, "f.json", error=ConfigError)
    assert found == Outer((Inner(3),))


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"parts": [{"size": "3"}]}, "parts.0.size"),
        ({"parts": [], "more": 1}, "more"),
        ({}, "parts"),
        ([], ""),
    ],
)
def test_problem_names_the_source_the_key_and_the_next_step(content: object, key: str):
    with pytest.raises(ConfigError) as caught:
        decode_strict(Outer, content, "f.json", error=ConfigError, hint="Write it again.")
    assert caught.value.message.startswith(f"f.json: key '{key}': ")
    assert caught.value.hint == "Write it again."
