"""Options are made of the types of parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import click
import pytest
from typing_extensions import Unpack

from moh_deploy.cli import values
from moh_deploy.cli.command import Argument, Default, OptionGroup, Under, command
from moh_deploy.cli.values import parse_choices, parse_longest, parse_sizes, parse_tokens
from moh_deploy.errors import ConfigError


class Scored(TypedDict):
    first: Annotated[bool, "The first."]
    second: Annotated[int | None, "N", "The second."]


def _click_of(hint: Any) -> click.Parameter:
    def function(**given: Any) -> None: ...

    function.__annotations__ = {"some_name": hint}
    (parameter,) = command("any")(function).params
    return parameter


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (Annotated[Path, "DIR", "x"], {"required": True, "type": values.FILE_PATH}),
        (Annotated[Path | None, "DIR", "x"], {"required": False, "metavar": "DIR"}),
        (Annotated[tuple[int, ...], "N", "x"], {"multiple": True, "help": "x Repeatable."}),
        (Annotated[tuple[int, ...], "N ...", "x"], {"multiple": True, "help": "x"}),
        (Annotated[tuple[int, *tuple[int, ...]], "N", "x"], {"multiple": True, "required": True}),
        (Annotated[bool, "x"], {"is_flag": True, "opts": ["--some-name"]}),
        (Annotated[bool, ""], {"hidden": True}),
        (Annotated[str, "--other -o X", "x"], {"opts": ["--other", "-o"], "name": "some_name"}),
        (Annotated[int, "N", "x", Default(3)], {"default": 3, "show_default": True}),
        (Annotated[int, "N", "x", Default(3, shown=False)], {"show_default": False}),
        (Annotated[int, "N", "x", click.IntRange(1)], {"type.min": 1, "required": True}),
        (Annotated[Literal["a", "b"], "x"], {"type.choices": ("a", "b"), "required": True}),
        (Annotated[Mapping[str, int], "N=M", "x", values.seconds], {"multiple": True}),
        (Annotated[str | None, Argument("[X]")], {"required": False, "metavar": "[X]"}),
        (Annotated[tuple[str, ...], Argument("X", -1)], {"required": False, "nargs": -1}),
    ],
)
def test_type_says_what_is_taken(hint: Any, expected: dict[str, object]):
    parameter = _click_of(hint)
    found = {}
    for name in expected:
        value: Any = parameter
        for part in name.split("."):
            value = getattr(value, part)
        found[name] = value
    assert found == expected


class Given(TypedDict):
    a: Annotated[bool, "Everyday."]
    c: Annotated[bool, "Rare.", Under("More")]
    d: Annotated[bool, "Everyday.", Default(False)]


def _made(loading: OptionGroup) -> click.Command:
    def function(**given: Any) -> None:
        """Do it.

        Example:
            moh-deploy any --a \\
                --b
        """

    function.__annotations__ = {
        "as_json": Annotated[bool, "--json", "Print.", Under("Reports")],
        "b": Annotated[bool, "Everyday, of the command itself."],
        "loading": Annotated[Scored, loading],
        "given": Unpack[Given],
    }
    return command("any", page="some-page")(function)


def _sections(text: str) -> dict[str, list[str]]:
    """Return the options under each heading."""
    sections: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and line[0] != " ":
            sections[line.rstrip(":")] = found = []
        elif line.startswith("  -"):
            found.append(line.split()[0])
    return sections


def test_help_begins_with_the_example_and_everyday_options():
    text = _made(OptionGroup("Loading", ("second",))).get_help(click.Context(click.Command("any")))
    assert text.startswith("Example:\n  moh-deploy any --a \\\n      --b\n\nUsage: ")
    assert "Do it." in text
    assert text.endswith("\n\nMore: moh-deploy help some-page")
    assert list(_sections(text).items())[2:] == [
        ("Options", ["--b", "--a", "--d", "--help"]),
        ("More", ["--c"]),
        ("Loading", ["--second"]),
        ("Reports", ["--json"]),
        ("More: moh-deploy help some-page", []),
    ]


def test_group_apart_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]):
    made = _made(OptionGroup("Loading", shown_by="--help-loading"))
    text = made.get_help(click.Context(click.Command("any")))
    assert "Loading" not in _sections(text)
    assert "--help-loading" in _sections(text)["Options"]
    made.main(["--help-loading"], standalone_mode=False, prog_name="any")
    assert _sections(capsys.readouterr().out) == {"Loading": ["--first", "--second"]}
    assert made.make_context("any", ["--first"]).params["first"]


def test_group_comes_as_one_value():
    told: list[object] = []

    def function(scored: Scored, name: str) -> None:
        told.append((scored, name))

    function.__annotations__ = {
        "scored": Annotated[Scored, OptionGroup("Scores")],
        "name": Annotated[str, "X", "x"],
    }
    command("any")(function)(["--first", "--name", "n"], standalone_mode=False)
    assert told == [({"first": True, "second": None}, "n")]


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
