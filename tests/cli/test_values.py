from __future__ import annotations

import pytest

from moh_deploy.cli.values import parse_choices, parse_longest, parse_sizes, parse_tokens
from moh_deploy.errors import ConfigError


def test_sizes_are_read_by_name():
    assert parse_sizes(["seq=128", "past=0", "seq=512"]) == {"seq": [128, 512], "past": [0]}
    for text in ("seq", "=4", "seq=", "seq=-1", "seq=many"):
        with pytest.raises(ConfigError, match=f"'{text}' is no size, expected NAME=N"):
            parse_sizes([text])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["seq"], "longest is 'seq', expected DIM=N"),
        (["seq=many"], "longest is 'seq=many'"),
        (["seq=1", "seq=2"], "longest names 'seq' twice"),
    ],
)
def test_text_that_is_no_longest_size_is_refused(texts: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        parse_longest(texts)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["dense"], "'dense' is no choice, expected LAYER=CHOICE"),
        (["=dense"], "'=dense' is no choice"),
        (["a=dense", "a=sparse"], "layer 'a' is chosen twice: dense and sparse"),
    ],
)
def test_text_that_chooses_nothing_is_refused(texts: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        parse_choices(texts)


def test_choices_are_read_from_text():
    assert parse_choices([]) is None
    assert parse_choices(["a.b=dense", "all=sparse"]) == {"a.b": "dense", "all": "sparse"}


def test_prompts_of_numbers_are_read():
    assert parse_tokens(["1,15, 27", "3"]) == [[1, 15, 27], [3]]
    for text in ("1,,2", "a", "-1", "9" * 30):
        with pytest.raises(ConfigError, match="is no prompt, expected 1,15,27"):
            parse_tokens([text])
