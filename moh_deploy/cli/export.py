"""`moh-deploy export`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer


@click.command("export_package")
@options.takes(*options.EXPORT)
def command(as_json: bool, **given: object) -> None:
    """Turn MODEL, of PyTorch (.pt, .pth, .safetensors, .pt2) or .onnx, into a verified package.

    An ONNX file needs no code and no example inputs: docs/onnx-input.md.
    """
    from moh_deploy.api.export_package import export_package
    from moh_deploy.config.options import ExportOptions

    job = ExportOptions(**given)  # type: ignore[arg-type]
    print_answer(lambda progress: export_package(job, progress=progress), as_json=as_json)
