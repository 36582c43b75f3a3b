"""The report of `bundle --target genai`: what was written, and how it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from moh_deploy.report.document import Document, Table, Text
from moh_deploy.report.report import Report
from moh_deploy.serving.genai.bundle_json import GenaiBundle


@dataclass(frozen=True)
class GenaiBundleReport(Report):
    """A bundle for genai that was written.

    Attributes:
        root: Where.
        bundle: What it holds.
    """

    root: Path
    bundle: GenaiBundle

    def document(self) -> Document:
        """Return what it says."""
        bundle = self.bundle
        rows = [
            ("kernels", bundle.library or "none: function bodies run"),
            ("caches", "one buffer, in place" if bundle.shares_buffer else "copied at every step"),
            ("files", str(len(bundle.files) + 1)),
        ]
        return Document(
            "bundle",
            (
                Text(f"bundle {self.root}"),
                Table("what genai will run", ("what", ""), rows),
                Text(f"open it: onnxruntime_genai.Model({str(self.root)!r})"),
                Text(f"compare its tokens: moh-deploy verify {quote(str(self.root))}"),
            ),
        )
