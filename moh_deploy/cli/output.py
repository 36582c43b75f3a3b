"""Where a command's words go: the report to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Protocol, TypeVar

import click

from moh_deploy.cli.failure import error_json, print_error, writing_stdout
from moh_deploy.system.json_text import to_json_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moh_deploy.errors import MoHDeployError
    from moh_deploy.report.report import Report
    from moh_deploy.system.progress import SilentProgress

_Answered = TypeVar("_Answered")

_FILE_WIDTH = 160


class AnswerReport(Protocol):
    """A report whose answer may be no."""

    @property
    def failure(self) -> MoHDeployError | None: ...

    def to_json(self) -> dict[str, object]: ...

    def __rich__(self) -> RenderableType: ...


def with_progress(job: Callable[[SilentProgress], _Answered], *, as_json: bool) -> _Answered:
    """Do a job with progress on stderr. What code of the user's prints meanwhile goes there too."""
    from moh_deploy.system.progress import progress_for_terminal

    with redirect_stdout(sys.stderr):
        return job(progress_for_terminal(quiet=as_json))


def print_report(report: Report, *, as_json: bool) -> None:
    """Print a report on stdout: one JSON object, or tables."""
    if as_json:
        _print_json(report.to_json())
    else:
        _print_rich(report)


def print_answer(report: AnswerReport, *, as_json: bool, **facts: object) -> None:
    """Print a report, and if its answer is no, end with that exit code and the reason on stderr.

    Args:
        facts: What stands before the report in the JSON object, such as the package's name.
    """
    failure = report.failure
    if as_json:
        error = {} if failure is None else {"error": error_json(failure)}
        _print_json({**facts, **report.to_json(), **error})
    else:
        _print_rich(report)
    if failure is not None:
        print_error(failure.message, failure.hint)
        raise click.exceptions.Exit(failure.exit_code)


def _print_json(content: Mapping[str, object]) -> None:
    with writing_stdout():
        click.echo(to_json_text(content))


def _print_rich(content: RenderableType) -> None:
    """Print in colour if stdout is a terminal."""
    from rich.console import Console

    # What is not a terminal has no width: leave tables room.
    console = Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH)
    with writing_stdout():
        with console.capture() as capture:
            console.print(content)
        click.echo(capture.get(), nl=False)
