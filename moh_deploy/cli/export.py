"""`moh-deploy export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer

if TYPE_CHECKING:
    from moh_deploy.system.progress import SilentProgress
    from moh_deploy.validate.export_report import ExportReport


@click.command("export_package")
@options.takes(*options.EXPORT)
def command(as_json: bool, verbose: bool, **given: object) -> None:
    """Turn MODEL, of PyTorch (.pt, .pth, .safetensors, .pt2) or .onnx, into a verified package.

    MODEL may be a directory with config.json and weights, as Hugging Face lays it out.

    An ONNX file needs no code and no example inputs: docs/onnx-input.md.
    """
    from moh_deploy.api.export_package import export_package
    from moh_deploy.config.options import ExportOptions
    from moh_deploy.system.progress import seconds_text

    job = ExportOptions(**given)  # type: ignore[arg-type]

    def export(progress: SilentProgress) -> ExportReport:
        try:
            return export_package(job, progress=progress)
        finally:  # of an export that fails, too
            if verbose:
                click.echo(seconds_text(progress.seconds), err=True)

    print_answer(export, as_json=as_json)
