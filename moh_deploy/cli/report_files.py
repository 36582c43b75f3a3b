"""Files that a report is written to, beside what a command prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moh_deploy.errors import MoHDeployError

if TYPE_CHECKING:
    from moh_deploy.validate.parity_report import ParityReport

_NOT_FINISHED = "The comparison did not finish."


@dataclass(frozen=True)
class ReportFiles:
    """JUnit XML and Markdown of a comparison.

    Until there is an answer they say that there is none: a file of an earlier run must not speak
    for one that was stopped.

    Attributes:
        subject: The package or engine, as the user named it.
    """

    subject: str
    junit: Path | None
    markdown: Path | None

    def write_on(self, compare: Callable[[], ParityReport]) -> ParityReport:
        """Compare and write the answer.

        Raises:
            MoHDeployError: As `compare` does; the files say so.
            PackageError: A file cannot be written.
        """
        self._write_error(_NOT_FINISHED)
        try:
            report = compare()
        except MoHDeployError as error:
            self._write_error(error.message)
            raise
        self._write_report(report)
        return report

    def _write_report(self, report: ParityReport) -> None:
        from moh_deploy.report.junit import junit_xml
        from moh_deploy.report.markdown import markdown

        _write(self.junit, lambda: junit_xml(report, self.subject))
        _write(self.markdown, lambda: markdown(report, self.subject))

    def _write_error(self, message: str) -> None:
        from moh_deploy.report.junit import junit_error
        from moh_deploy.report.markdown import markdown_error

        _write(self.junit, lambda: junit_error(self.subject, message))
        _write(self.markdown, lambda: markdown_error(self.subject, message))


def _write(path: Path | None, text: Callable[[], str]) -> None:
    from moh_deploy.atomic import staged_file

    if path is not None:
        with staged_file(path) as partial:
            partial.write_text(text(), encoding="utf-8")
