"""Turns what is typed on the command line into values: paths, sizes, choices, prompts, times."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from moh_deploy.errors import ConfigError
from moh_deploy.system.units import parse_seconds


class _FilePath(click.Path):
    """A path, there or not; one that the system cannot even look up is wrong usage.

    Args:
        path_type: What it becomes.
        words: What a shell offers beside paths.
    """

    name = "path"

    def __init__(self, path_type: type, words: Sequence[str] = ()) -> None:
        super().__init__(path_type=path_type)
        self._words = words

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

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        words = [CompletionItem(word) for word in self._words if word.startswith(incomplete)]
        return [*words, *super().shell_complete(ctx, param, incomplete)]


FILE_PATH = _FilePath(Path)


def name_or_path(*words: str) -> click.Path:
    """Take one of these words, or a path, as text."""
    return _FilePath(str, words)


class _MetricName(click.types.StringParamType):
    """The name of a metric, or `MODULE:FUNCTION`: a shell offers the names."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        # Not those of validate/, which would import numpy at each Tab.
        names = ("top-1", "top-5", "perplexity")
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


METRIC_NAME = _MetricName()

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
