"""Reports as they are printed, and in each format of a file."""

from rich.console import Console, RenderableType

from moh_deploy.report.document import About
from moh_deploy.report.html.page import page
from moh_deploy.report.junit import junit
from moh_deploy.report.markdown import markdown
from moh_deploy.report.report import Report
from moh_deploy.report.terminal import terminal


def text_of(content: RenderableType, width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(content)
    return capture.get()


def verbose_text_of(report: Report) -> str:
    """Return what `--verbose` prints."""
    return text_of(terminal(report.document(), verbose=True))


def as_junit(report: Report, subject: str) -> str:
    return junit(report.document(), About(subject))


def as_markdown(report: Report, subject: str) -> str:
    return markdown(report.document(), About(subject))


def as_page(report: Report, about: About) -> str:
    return page(report.document(), about)
