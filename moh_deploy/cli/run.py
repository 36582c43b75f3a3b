"""`moh-deploy run`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moh_deploy.cli.common_options import json_option, kernels_option, package_argument
from moh_deploy.cli.file_path import FILE_PATH
from moh_deploy.cli.output import carry_out, print_report

if TYPE_CHECKING:
    from moh_deploy.runtime.runner import Kernels


@click.command("run")
@package_argument
@click.option(
    "--inputs",
    required=True,
    metavar="FILE.npz",
    type=FILE_PATH,
    help="Inputs, named as in the model or in its order.",
)
@click.option(
    "--outputs",
    required=True,
    metavar="FILE.npz",
    type=FILE_PATH,
    help="Where to write the outputs, named as in the model.",
)
@kernels_option
@json_option
def command(package: Path, inputs: Path, outputs: Path, kernels: Kernels, as_json: bool) -> None:
    """Run the package DIR once with ONNX Runtime, or the engine DIR with its TensorRT."""
    from moh_deploy.api.run import run

    report = carry_out(
        lambda progress: run(
            package, inputs=inputs, outputs=outputs, kernels=kernels, progress=progress
        ),
        as_json=as_json,
    )
    print_report(report, as_json=as_json)
