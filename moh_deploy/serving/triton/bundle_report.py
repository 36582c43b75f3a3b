"""The report of `bundle`: what was written, and how a server is started with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from moh_deploy.report.document import Document, Table, Text
from moh_deploy.report.report import Report
from moh_deploy.serving.triton.bundle_json import LIBRARIES, REPOSITORY, Bundle


@dataclass(frozen=True)
class BundleReport(Report):
    """A bundle that was written.

    Attributes:
        root: Where.
        bundle: What it holds.
        start: The command that serves it.
    """

    root: Path
    bundle: Bundle
    start: str

    @classmethod
    def of(cls, root: Path, bundle: Bundle) -> BundleReport:
        """Return the report of a bundle."""
        return cls(root, bundle, _start(root, bundle))

    def document(self) -> Document:
        """Return what it says."""
        bundle, settings = self.bundle, self.bundle.settings
        library = bundle.library
        needs = "none: function bodies run"
        if library is not None:
            glibc = f", GNU C library {library.glibc} or newer" if library.glibc else ""
            needs = f"{library.file}: {library.machine}{glibc}"
        threads = "the machine's cores shared" if settings.threads is None else settings.threads
        batches = f"up to {bundle.max_batch} samples, joined for {settings.max_delay_ms:g} ms"
        rows = [
            ("model", f"{settings.name}, version {settings.version}"),
            ("backend", bundle.backend),
            ("instances", f"{settings.instances}, threads: {threads}"),
            ("batches", batches if bundle.max_batch else "none: requests cannot be joined"),
            ("kernels", needs),
            ("files", str(len(bundle.files) + 1)),
        ]
        return Document(
            "bundle",
            (
                Text(f"bundle {self.root}"),
                Table("what Triton will serve", ("what", ""), rows),
                Text(f"start it: {self.start}"),
                Text(
                    f"look whether a machine can: moh-deploy bundle --check {quote(str(self.root))}"
                ),
            ),
        )


def _start(root: Path, bundle: Bundle) -> str:
    command = f"tritonserver --model-repository={quote(str(root / REPOSITORY))}"
    if bundle.library is None:
        return command
    if bundle.backend == "onnxruntime":
        libraries = quote(str((root / LIBRARIES).resolve()))
        return f"LD_LIBRARY_PATH={libraries}:$LD_LIBRARY_PATH {command}"
    if bundle.backend == "tensorrt":
        # docs/running-engines.md says where it comes from.
        return f"{command} --backend-config=tensorrt,plugins=libmoh_plugin_registered.so"
    return command
