"""Files that a report is written to, beside what a command prints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from moh_deploy.errors import ConfigError, MoHDeployError

if TYPE_CHECKING:
    from moh_deploy.perf.bench.report import BenchReport
    from moh_deploy.validate.edge_cases.report import ProbeReport
    from moh_deploy.validate.parity_report import ParityReport

Report = TypeVar("Report")


@dataclass(frozen=True)
class ReportFile(Generic[Report]):
    """One file.

    Attributes:
        path: Where it is written; None if nobody asked for it.
        of_report: Returns its text.
        of_error: Returns the text that says why there is no report.
    """

    path: Path | None
    of_report: Callable[[Report], str]
    of_error: Callable[[str], str]


@dataclass(frozen=True)
class ReportFiles(Generic[Report]):
    """All files of one command.

    Until there is an answer they say that there is none: a file of an earlier run must not speak
    for one that was stopped.

    Attributes:
        files: They.
        not_finished: The sentence for a run that was stopped.
    """

    files: Sequence[ReportFile[Report]]
    not_finished: str

    def write_on(self, job: Callable[[], Report]) -> Report:
        """Do the job and write the answer.

        Raises:
            MoHDeployError: As `job` does; the files say so.
            ConfigError: Two of them are the same.
            PackageError: A file cannot be written.
        """
        self._refuse_twins()
        self._write_error(self.not_finished)
        try:
            report = job()
        except MoHDeployError as error:
            self._write_error(error.message)
            raise
        for one in self.files:
            if one.path is not None:
                _write(one.path, one.of_report(report))
        return report

    def _refuse_twins(self) -> None:
        paths = [one.path.resolve() for one in self.files if one.path is not None]
        for path in paths:
            if paths.count(path) > 1:
                raise ConfigError(f"{path} is to hold {paths.count(path)} reports, expected one.")

    def _write_error(self, message: str) -> None:
        for one in self.files:
            if one.path is not None:
                _write(one.path, one.of_error(message))


def verify_files(
    subject: str,
    arguments: Sequence[str],
    *,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
) -> ReportFiles[ParityReport]:
    """Return the files of `verify`.

    Args:
        subject: The package or engine, as the user named it.
        arguments: Of the command line.
        junit: JUnit XML.
        markdown: Markdown.
        html: An HTML page.
    """
    from moh_deploy.cli.report_files.verify_junit import junit_xml
    from moh_deploy.cli.report_files.verify_markdown import markdown as markdown_report
    from moh_deploy.cli.report_files.verify_markdown import markdown_error
    from moh_deploy.cli.report_files.verify_page import verify_page
    from moh_deploy.report.html.page import Run, no_answer_page
    from moh_deploy.report.junit_document import junit_error

    run = Run(subject, arguments)
    return ReportFiles(
        (
            ReportFile(
                junit, lambda report: junit_xml(report, subject), _about(junit_error, subject)
            ),
            ReportFile(
                markdown,
                lambda report: markdown_report(report, subject),
                _about(markdown_error, subject),
            ),
            ReportFile(
                html,
                lambda report: verify_page(report, run),
                lambda message: no_answer_page("verify", run, message),
            ),
        ),
        "The comparison did not finish.",
    )


def bench_files(
    subject: str,
    arguments: Sequence[str],
    *,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
) -> ReportFiles[BenchReport]:
    """Return the files of `bench`; see `verify_files`."""
    from moh_deploy.cli.report_files.bench_junit import bench_junit_xml
    from moh_deploy.cli.report_files.bench_page import bench_page
    from moh_deploy.cli.report_files.verify_markdown import markdown_error
    from moh_deploy.report.html.page import Run, no_answer_page
    from moh_deploy.report.junit_document import junit_error

    run = Run(subject, arguments)
    return ReportFiles(
        (
            ReportFile(
                junit,
                lambda report: bench_junit_xml(report, subject),
                lambda message: junit_error(subject, message, "bench"),
            ),
            ReportFile(
                markdown, lambda report: report.to_markdown(), _about(markdown_error, subject)
            ),
            ReportFile(
                html,
                lambda report: bench_page(report, run),
                lambda message: no_answer_page("bench", run, message),
            ),
        ),
        "The measurement did not finish.",
    )


def probe_files(subject: str, *, junit: Path | None) -> ReportFiles[ProbeReport]:
    """Return the files of `probe`; see `verify_files`."""
    from moh_deploy.cli.report_files.probe_junit import probe_junit
    from moh_deploy.report.junit_document import junit_error

    file: ReportFile[ProbeReport] = ReportFile(
        junit,
        lambda report: probe_junit(report, subject),
        lambda message: junit_error(subject, message, "probe"),
    )
    return ReportFiles((file,), "The edge cases did not finish.")


def _about(write: Callable[[str, str], str], subject: str) -> Callable[[str], str]:
    return lambda message: write(subject, message)


def _write(path: Path, text: str) -> None:
    from moh_deploy.system.staging import staged_file

    with staged_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
