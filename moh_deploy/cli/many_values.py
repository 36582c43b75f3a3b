"""A command with options that take one value after the other: `--compute-capability 8.6 8.9`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click


class ManyValues(click.Command):
    """A command of which some repeatable options may be named once for many values.

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
