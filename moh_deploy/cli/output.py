"""Where a command's words go: the report to stdout, everything else to stderr."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, TypeVar

import click

from moh_deploy.cli.failure import error_json, print_error, writing_stdout
from moh_deploy.errors import ConfigError, MoHDeployError
from moh_deploy.system.bounded_json import to_json_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moh_deploy.cli.options import ReportPaths
    from moh_deploy.report.document import Document
    from moh_deploy.report.report import Report
    from moh_deploy.system.progress import SilentProgress


_FILE_WIDTH = 160


def print_answer(
    job: Callable[[SilentProgress], Report],
    *,
    as_json: bool,
    verbose: bool = False,
    **facts: object,
) -> None:
    """Print the report of a job: one JSON object, or tables. If its answer is no, end with that
    exit code and the reason on stderr.

    Args:
        job: Its progress is shown on stderr. What code of the user's prints meanwhile goes there
            too.
        verbose: Print all tables and columns.
        facts: What stands before the report in the JSON object, such as the package's name.
    """
    from moh_deploy.system.progress import progress_for_terminal

    with redirect_stdout(sys.stderr):
        report = job(progress_for_terminal(quiet=is_quiet(as_json=as_json)))
    failure = report.failure
    if as_json:
        error = {} if failure is None else {"error": error_json(failure)}
        with writing_stdout():
            click.echo(to_json_text({**facts, **report.to_json(), **error}))
    else:
        from moh_deploy.report.terminal import terminal

        _print_rich(terminal(report.document(), verbose=verbose))
    if failure is not None:
        print_error(failure.message, failure.hint)
        raise click.exceptions.Exit(failure.exit_code)


def is_quiet(*, as_json: bool) -> bool:
    """Tell whether progress is hidden: with JSON a log stays empty, a terminal still shows it."""
    return as_json and not sys.stderr.isatty()


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

_NOT_FINISHED = {
    "verify": "The comparison did not finish.",
    "bench": "The measurement did not finish.",
    "inspect": "The package was not read.",
    "probe": "The edge cases did not finish.",
    "bisect": "The search did not finish.",
    "tune": "The measurement did not finish.",
    "compare": "The comparison did not finish: nothing is decided.",
    "cost": "Nothing was priced.",
    "watch": "Nothing was judged yet.",
    "drill": "The drill did not finish.",
}


AnyReport = TypeVar("AnyReport", bound="Report")


def write_files(
    paths: ReportPaths, subject: str, job: Callable[[], AnyReport], *, keep_earlier: bool = False
) -> AnyReport:
    """Do the job of the command that runs, and write its answer to files.

    Until there is an answer they say that it is missing: a file of an earlier run must not speak
    for one that was stopped.

    Args:
        subject: Packages or engine, as the user named them.
        keep_earlier: Write none before there is an answer: those of an earlier run belong to its
            output, which stays until then, too.

    Raises:
        MoHDeployError: As `job` does; the files say so.
        ConfigError: Two of them are the same.
        PackageError: A file cannot be written, or is there and no report.
    """
    # Without files nothing of what writes them is imported.
    if not any(paths.values()):
        return job()
    from moh_deploy.perf.environment import environment
    from moh_deploy.report.document import About, no_answer
    from moh_deploy.report.html.page import HTML_FILE, page
    from moh_deploy.report.junit import JUNIT_FILE, junit
    from moh_deploy.report.markdown import MARKDOWN_FILE, markdown
    from moh_deploy.system.replaceable import check_file_output
    from moh_deploy.system.staging import staged_file

    formats = (
        (paths.get("junit"), JUNIT_FILE, junit),
        (paths.get("markdown"), MARKDOWN_FILE, markdown),
        (paths.get("html"), HTML_FILE, page),
    )
    asked = [(path, kind, render) for path, kind, render in formats if path is not None]
    places = [path.resolve() for path, _, _ in asked]
    for path, kind, _ in asked:
        if (count := places.count(path.resolve())) > 1:
            raise ConfigError(f"{path.resolve()} is to hold {count} reports, expected one.")
        check_file_output(path, kind)

    def write(document: Document, made_with: Sequence[tuple[str, str]] = ()) -> None:
        for path, _, render in asked:
            with staged_file(path) as partial:
                # Names of files may hold halves of surrogate pairs, which UTF-8 cannot.
                text = render(document, About(subject, command, tuple(made_with)))
                partial.write_text(text, encoding="utf-8", errors="backslashreplace")

    context = click.get_current_context()
    name, command = str(context.info_name), shlex.join(["moh-deploy", *(context.obj or ())])
    if keep_earlier:
        report = job()
    else:
        write(no_answer(name, _NOT_FINISHED[name]))
        try:
            report = job()
        except MoHDeployError as error:
            write(no_answer(name, error.message))
            raise
    # Kernels are known only now: which ones were used is up to the runtime. Of several ways of
    # running, and of files that were only read, a report names none.
    write(report.document(), environment(getattr(report, "kernels", None)))
    return report
