"""Turns what is typed on the command line into values: paths, sizes, choices, prompts, times."""

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from moh_deploy.errors import ConfigError
from moh_deploy.system.units import parse_seconds


class _FilePath(click.Path):
    """A path, there or not; one that the system cannot even look up is wrong usage."""

    name = "path"

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        path = os.fspath(value)
        try:
            os.stat(path)
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                shown = path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}..."
                self.fail(f"'{shown}': {error.strerror}.", param, ctx)
        return super().convert(value, param, ctx)


FILE_PATH = _FilePath(path_type=Path)
NAME_OR_PATH = _FilePath(path_type=str)  # `functions`, or a file
_LONGEST_SHOWN = 100
_LONGEST_NUMBER = 10


def parse_sizes(texts: Sequence[str]) -> dict[str, list[int]]:
    """Read `NAME=N`; a name may come several times.

    Raises:
        ConfigError: A text is of another form.
    """
    sizes: dict[str, list[int]] = {}
    for text in texts:
        name, size = _name_and_size(text, f"'{text}' is no size, expected NAME=N")
        sizes.setdefault(name, []).append(size)
    return sizes


def parse_longest(texts: Sequence[str]) -> dict[str, int]:
    """Read `DIM=N` texts as limits of dimensions.

    Raises:
        ConfigError: A text is of another form, or a dimension is named twice.
    """
    sizes: dict[str, int] = {}
    for text in texts:
        name, size = _name_and_size(text, f"longest is '{text}', expected DIM=N")
        if name in sizes:
            raise ConfigError(f"longest names '{name}' twice.")
        sizes[name] = size
    return sizes


def _name_and_size(text: str, refusal: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isdecimal():
        raise ConfigError(f"{refusal}, such as seq=512.")
    return name, int(number)


def parse_choices(texts: Sequence[str]) -> dict[str, str] | None:
    """Read `LAYER=CHOICE`; None where there is nothing to read.

    Raises:
        ConfigError: A text is of another form, or a layer is named twice.
    """
    choices: dict[str, str] = {}
    for text in texts:
        path, equals, choice = text.rpartition("=")
        if not equals or not path:
            raise ConfigError(f"'{text}' is no choice, expected LAYER=CHOICE, such as all=dense.")
        if path in choices:
            raise ConfigError(f"layer '{path}' is chosen twice: {choices[path]} and {choice}.")
        choices[path] = choice
    return choices or None


def parse_tokens(texts: Sequence[str]) -> list[list[int]]:
    """Read `1,15,27`, a prompt each.

    Raises:
        ConfigError: A text is of another form.
    """
    prompts = [[part.strip() for part in text.split(",")] for text in texts]
    for text, parts in zip(texts, prompts, strict=True):
        if not all(part.isdecimal() and len(part) < _LONGEST_NUMBER for part in parts):
            raise ConfigError(f"'{text[:_LONGEST_SHOWN]}' is no prompt, expected 1,15,27.")
    return [[int(part) for part in parts] for parts in prompts]


# Callbacks of click.


def read_all(parse: Callable[[Sequence[str]], object]) -> Callable[..., object]:
    """Read all values of an option at once."""
    return lambda context, parameter, values: parse(values)


def seconds(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Read a time with its unit, such as 500ms."""
    return parse_seconds(value, option=param.opts[0])


def number_or_word(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> int | str | None:
    """Take a number as such, and leave a word to its reader."""
    return int(value) if value is not None and value.isdecimal() else value


class ManyValues(click.Command):
    """A command whose repeatable options may take many values at once.

    Args:
        many: Name of such an option to the form of its values, by which they are told from other
            arguments.
    """

    def __init__(self, *args: Any, many: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._many = many

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(self._repeated(args)))

    def _repeated(self, args: Sequence[str]) -> Iterator[str]:
        """Name the option again before each further value."""
        option, is_first = "", False
        for arg in args:
            is_value = bool(option) and re.fullmatch(self._many[option], arg) is not None
            if is_value and not is_first:
                yield option
            is_first = arg in self._many
            option = arg if is_first else option if is_value else ""
            yield arg
