"""What the reports of all commands have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, cast

from moh_deploy.report.json import to_json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moh_deploy.errors import MoHDeployError
    from moh_deploy.report.document import Document


class Report(ABC):
    """The answer of a command: a dataclass for programs, and a document of it for people."""

    @property
    def failure(self) -> MoHDeployError | None:
        """Why the answer is no; None where it is yes, or there was no question."""
        return None

    @abstractmethod
    def document(self) -> Document:
        """Return what it says."""

    def to_json(self) -> dict[str, object]:
        """Return the report in plain JSON types."""
        return cast("dict[str, object]", to_json(self))

    # Renderers are imported on first use: programs mostly read the fields of a report, or its JSON.

    def to_markdown(self) -> str:
        """Return the report as Markdown: what was judged, tables with headings, and all else."""
        from moh_deploy.report.markdown import markdown

        return markdown(self.document())

    def __rich__(self) -> RenderableType:
        from moh_deploy.report.terminal import terminal

        return terminal(self.document())
