"""Where a command's words go: the report to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, TypeVar

import click

from moh_deploy.cli.failure import writing_stdout
from moh_deploy.json_text import to_json_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moh_deploy.progress import SilentProgress

Report = TypeVar("Report")

_FILE_WIDTH = 160


def carry_out(job: Callable[[SilentProgress], Report], *, as_json: bool) -> Report:
    """Do a job with progress on stderr. What code of the user's prints meanwhile goes there too."""
    from moh_deploy.progress import progress_for_terminal

    with redirect_stdout(sys.stderr):
        return job(progress_for_terminal(quiet=as_json))


def print_json(content: Mapping[str, object]) -> None:
    """Print one JSON object on stdout."""
    with writing_stdout():
        click.echo(to_json_text(content))


def print_rich(content: RenderableType) -> None:
    """Print a report for people on stdout, in colour if that is a terminal."""
    from rich.console import Console

    # What is not a terminal has no width: leave tables room.
    console = Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH)
    with writing_stdout():
        with console.capture() as capture:
            console.print(content)
        click.echo(capture.get(), nl=False)
