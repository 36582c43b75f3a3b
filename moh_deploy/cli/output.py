"""Where a command's words go: the report to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

import click

from moh_deploy.cli.failure import error_json, print_error, writing_stdout
from moh_deploy.system.json_text import to_json_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moh_deploy.report.report import Report
    from moh_deploy.system.progress import SilentProgress

_FILE_WIDTH = 160


def print_answer(
    job: Callable[[SilentProgress], Report], *, as_json: bool, **facts: object
) -> None:
    """Print the report of a job: one JSON object, or tables. If its answer is no, end with that
    exit code and the reason on stderr.

    Args:
        job: Its progress is shown on stderr. What code of the user's prints meanwhile goes there
            too.
        facts: What stands before the report in the JSON object, such as the package's name.
    """
    from moh_deploy.system.progress import progress_for_terminal

    with redirect_stdout(sys.stderr):
        report = job(progress_for_terminal(quiet=as_json))
    failure = report.failure
    if as_json:
        error = {} if failure is None else {"error": error_json(failure)}
        with writing_stdout():
            click.echo(to_json_text({**facts, **report.to_json(), **error}))
    else:
        _print_rich(report)
    if failure is not None:
        print_error(failure.message, failure.hint)
        raise click.exceptions.Exit(failure.exit_code)


def _print_rich(content: RenderableType) -> None:
    """Print in colour if stdout is a terminal."""
    from rich.console import Console

    # What is not a terminal has no width: leave tables room.
    console = Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH)
    with writing_stdout():
        with console.capture() as capture:
            console.print(content, crop=False)
        click.echo(capture.get(), nl=False)
