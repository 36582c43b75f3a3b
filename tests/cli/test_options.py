from __future__ import annotations

import click
import pytest

from moh_deploy.cli import options
from moh_deploy.cli.options import parse_choices, parse_longest, parse_sizes
from moh_deploy.errors import ConfigError


def test_options_are_shown_in_the_order_in_which_they_are_given():
    first, second = click.option("--first"), click.option("--second")

    @click.command("any")
    @options.takes(first, (second, options.JSON))
    def command(**given: object) -> None: ...

    assert [one.name for one in command.params] == ["first", "second", "as_json"]


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
