"""Make a command of a function: its options are read from the types of its parameters.

    class ToRun(TypedDict):
        package_dir: Annotated[Path, Argument("DIR")]
        inputs: Annotated[tuple[Path, ...], "FILE.npz", "Inputs, named as in the model."]
        output_names: Annotated[tuple[str, ...], "--output-name NAME", "Name of an output."]

    @command("run")
    def run_command(as_json: options.Json, **given: Unpack[ToRun]) -> None:

The type says what an option takes, how often, and whether it is required. Behind it stand its flags
(if they are not those of the name) and what `--help` calls its value, then its help. More may
follow: a type of click, a `Default`, a function that reads all values at once, its place. Keys have
the names and types of the public function's parameters, which mypy compares: a new option is a line
here and a parameter in `api/COMMAND.py`.
"""

# Files of commands quote annotations only where a type is heavy to import.

import inspect
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import click

from moh_deploy.cli.values import FILE_PATH


class Argument(NamedTuple):
    """A parameter that is no option."""

    metavar: str | None = None  # what `--help` calls it; None for its name
    nargs: int = 1  # how many values it takes; -1: any number


class Default(NamedTuple):
    """The value where an option is not given."""

    value: object
    shown: bool = True


class Before(NamedTuple):
    """Where `--help` shows an option beside `**given`: before that of this key, not at the end."""

    key: str


class OptionGroup(NamedTuple):
    """Marks a TypedDict as a group of options; a command may take some of them."""

    keys: tuple[str, ...] = ()


def command(
    name: str, cls: type[click.Command] = click.Command, **settings: Any
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function."""

    def make(function: Callable[..., None]) -> click.Command:
        given = get_args(function.__annotations__.get("given"))
        found = _options(given[0]) if given else {}
        order = list(found)
        for parameter, hint in _options(function).items():
            places = [more.key for more in hint.__metadata__ if isinstance(more, Before)]
            order.insert(order.index(places[0]) if places else len(order), parameter)
            found[parameter] = hint
        groups = {
            key: {
                name: hint
                for name, hint in _options(get_args(found[key])[0]).items()
                if name in more.keys or not more.keys
            }
            for key in order
            for more in found[key].__metadata__
            if isinstance(more, OptionGroup)
        }
        params = [
            _parameter(option, hint)
            for key in order
            for option, hint in groups.get(key, {key: found[key]}).items()
        ]

        def call(**values: object) -> None:
            for key, group in groups.items():
                values[key] = {option: values.pop(option) for option in group}
            function(**values)

        return cls(name, callback=call, params=params, help=inspect.getdoc(function), **settings)

    return make


def _options(form: Any) -> dict[str, Any]:
    """Return the annotations of a function or a TypedDict that are options, by name."""
    hints = form.__annotations__.items()
    return {name: hint for name, hint in hints if get_origin(hint) is Annotated}


def _parameter(name: str, hint: Any) -> click.Parameter:
    form, *more = get_args(hint)
    is_optional = NoneType in get_args(form)
    if is_optional:
        form = get_args(form)[0]
    is_many = isinstance(get_origin(form), type)  # a tuple or mapping, and no Literal
    item = get_args(form)[0] if get_origin(form) is tuple else form
    # `tuple[Path, *tuple[Path, ...]]`: one at least.
    needs_one = get_origin(form) is tuple and get_args(form)[1] is not ...
    settings: dict[str, Any] = {"required": needs_one or not (is_optional or is_many)}
    if get_origin(item) is Literal:
        settings["type"] = click.Choice(get_args(item))
    elif not any(isinstance(found, FunctionType) for found in more):
        settings["type"] = FILE_PATH if item is Path else item
    texts: list[str] = []
    for found in more:
        match found:
            case str():
                texts.append(found)
            case click.ParamType():
                settings["type"] = found
            case Default():
                settings |= {"default": found.value, "show_default": found.shown, "required": False}
            case FunctionType():
                settings["callback"] = found
            case Argument():
                return click.Argument([name], metavar=found.metavar, nargs=found.nargs, **settings)
    usage, help = texts if len(texts) == 2 else ("", *texts)
    words = usage.split(" ")
    flags = [word for word in words if word.startswith("-")] or [f"--{name.replace('_', '-')}"]
    metavar = " ".join(word for word in words if not word.startswith("-"))
    if is_many and "Repeatable" not in help and not metavar.endswith(" ..."):
        help = f"{help} Repeatable."
    settings = {"is_flag": True} if item is bool else {**settings, "multiple": is_many}
    # An option that is for our own processes has no help.
    settings |= {"metavar": metavar or None, "help": help, "hidden": not help}
    return click.Option([*flags, name], **settings)
