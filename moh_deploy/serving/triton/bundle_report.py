"""The report of `bundle`: what was written, and how a server is started with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from moh_deploy.report.document import Document, Table, Text
from moh_deploy.report.report import Report
from moh_deploy.serving.triton.bundle_json import REPOSITORY, Bundle

NEVER_RUN = "no server has run a bundle of this backend yet: try it before you rely on it"


@dataclass(frozen=True)
class BundleReport(Report):
    """A bundle that was written.

    Attributes:
        root: Where.
        bundle: What it holds.
        start: The command that serves it, in a container where `tritonserver` is on PATH.
    """

    root: Path
    bundle: Bundle
    start: str

    @classmethod
    def of(cls, root: Path, bundle: Bundle) -> BundleReport:
        """Return the report of a bundle."""
        option = bundle.backend_config(".")
        if option is None:
            start = f"tritonserver --model-repository={quote(str(root / REPOSITORY))}"
        else:
            # The server takes the path of a library from its working directory.
            start = f"tritonserver --model-repository={REPOSITORY} {option}"
            start = f"cd {quote(str(root))} && {start}"
        return cls(root, bundle, start)

    def document(self) -> Document:
        """Return what it says."""
        bundle, settings = self.bundle, self.bundle.settings
        library = bundle.library
        needs = "in the engine" if bundle.embeds_plugins else "none: function bodies run"
        if library is not None:
            glibc = f", GNU C library {library.glibc} or newer" if library.glibc else ""
            needs = f"{library.file}: {library.machine}{glibc}"
        threads = "the machine's cores shared" if settings.threads is None else settings.threads
        batches = f"up to {bundle.max_batch} samples, joined for {settings.max_delay_ms:g} ms"
        tensors = (*bundle.inputs, *bundle.outputs)
        # Triton has no tensors without axes, beside the batch axis.
        flat = [info.name for info in tensors if len(info.shape) == int(bundle.max_batch > 0)]
        shape = "[batch, 1]" if bundle.max_batch else "[1]"
        rows = [
            ("model", f"{settings.name}, version {settings.version}"),
            ("backend", bundle.backend),
            *([("", NEVER_RUN)] if bundle.backend == "tensorrt" else []),
            ("instances", f"{settings.instances}, threads: {threads}"),
            ("batches", batches if bundle.max_batch else "none: requests cannot be joined"),
            *([("shapes in Triton", f"{', '.join(flat)}: {shape}")] if flat else []),
            ("kernels", needs),
            ("files", str(len(bundle.files) + 1)),
        ]
        check = f"moh-deploy bundle --check {quote(str(self.root))}"
        return Document(
            "bundle",
            (
                Text(f"bundle {self.root}"),
                Table("what Triton will serve", ("what", ""), rows),
                Text(f"start it: {self.start}", is_whole=True),
                Text(f"see if it starts here: {check}", is_whole=True),
            ),
        )
