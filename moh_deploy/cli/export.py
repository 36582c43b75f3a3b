"""`moh-deploy export`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import carry_out, print_report


@click.command("export")
@options.takes(*options.EXPORT)
def command(as_json: bool, **given: object) -> None:
    """Turn the PyTorch MODEL (.pt, .pth, .safetensors, .pt2) into a verified ONNX package."""
    from moh_deploy.api.export_package import export
    from moh_deploy.config.options import ExportOptions

    job = ExportOptions(**given)  # type: ignore[arg-type]
    report = carry_out(lambda progress: export(job, progress=progress), as_json=as_json)
    print_report(report, as_json=as_json)
