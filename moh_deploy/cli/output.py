"""Where a command's words go: the report to stdout, everything else to stderr."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import click

from moh_deploy.cli.failure import error_json, print_error, writing_stdout
from moh_deploy.errors import ConfigError, MoHDeployError
from moh_deploy.system.bounded_json import to_json_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moh_deploy.report.report import Report
    from moh_deploy.system.progress import SilentProgress

if TYPE_CHECKING:
    from moh_deploy.report.document import About, Document
    from moh_deploy.runtime.kernel_use import KernelUse
    from moh_deploy.system.replaceable import FileKind


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


# Files that a report is written to, beside what a command prints.

FileFormat = Literal["junit", "markdown", "html"]

_NOT_FINISHED = {
    "verify": "The comparison did not finish.",
    "bench": "The measurement did not finish.",
    "probe": "The edge cases did not finish.",
    "compare": "The comparison did not finish: nothing is decided.",
    "cost": "Nothing was priced.",
    "watch": "Nothing was judged yet.",
    "drill": "The drill did not finish.",
}


class Filed(Protocol):
    """A report that can be written to files."""

    @property
    def kernels(self) -> KernelUse | None: ...

    def document(self) -> Document: ...


AnyReport = TypeVar("AnyReport", bound=Filed)


@dataclass(frozen=True)
class ReportFiles:
    """All files of one command.

    Until there is an answer they say that there is none: a file of an earlier run must not speak
    for one that was stopped.

    Attributes:
        kind: The command.
        subject: Packages or engine, as the user named them.
        paths: Where the report is written in each format; None where nobody asked for it.
        arguments: Of the command line.
    """

    kind: str
    subject: str
    paths: Mapping[FileFormat, Path | None]
    arguments: Sequence[str] = ()

    def write_on(self, job: Callable[[], AnyReport]) -> AnyReport:
        """Do the job and write the answer.

        Raises:
            MoHDeployError: As `job` does; the files say so.
            ConfigError: Two of them are the same.
            PackageError: A file cannot be written, or is there and no report.
        """
        asked = {name: path for name, path in self.paths.items() if path is not None}
        # Without files nothing of what writes them is imported.
        if not asked:
            return job()
        from moh_deploy.perf.environment import environment
        from moh_deploy.report.document import About, no_answer

        _refuse_twins(list(asked.values()))
        _refuse_others(asked)
        command = shlex.join(["moh-deploy", *self.arguments]) if self.arguments else ""
        about = About(self.subject, command)
        _write(asked, no_answer(self.kind, _NOT_FINISHED[self.kind]), about)
        try:
            report = job()
        except MoHDeployError as error:
            _write(asked, no_answer(self.kind, error.message), about)
            raise
        # Kernels are known only now: which ones were used is up to the runtime.
        made_with = tuple(environment(report.kernels))
        _write(asked, report.document(), About(self.subject, command, made_with))
        return report


def _refuse_twins(paths: Sequence[Path]) -> None:
    places = [path.resolve() for path in paths]
    for place in places:
        if places.count(place) > 1:
            raise ConfigError(f"{place} is to hold {places.count(place)} reports, expected one.")


def _refuse_others(paths: Mapping[FileFormat, Path]) -> None:
    from moh_deploy.system.replaceable import check_file_output

    for name, path in paths.items():
        check_file_output(path, _formats()[name][0])


def _write(paths: Mapping[FileFormat, Path], document: Document, about: About) -> None:
    from moh_deploy.system.staging import staged_file

    for name, path in paths.items():
        _, render = _formats()[name]
        with staged_file(path) as partial:
            # Names of files may hold halves of surrogate pairs, which UTF-8 cannot.
            text = render(document, about)
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def _formats() -> Mapping[FileFormat, tuple[FileKind, Callable[[Document, About], str]]]:
    from moh_deploy.report.html.page import HTML_FILE, page
    from moh_deploy.report.junit import JUNIT_FILE, junit
    from moh_deploy.report.markdown import MARKDOWN_FILE, markdown

    return {
        "junit": (JUNIT_FILE, junit),
        "markdown": (MARKDOWN_FILE, markdown),
        "html": (HTML_FILE, page),
    }
