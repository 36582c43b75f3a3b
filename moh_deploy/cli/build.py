"""`moh-deploy build`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli.common_options import json_option, package_argument
from moh_deploy.cli.file_path import FILE_PATH
from moh_deploy.cli.many_values import ManyValues
from moh_deploy.cli.output import carry_out, print_answer


@click.command("build", cls=ManyValues, many={"--compute-capability": r"\d+\.\d+"})
@package_argument
@click.option(
    "--backend",
    required=True,
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    help="What builds and runs the engine. tensorrt builds for the GPU of this machine;"
    " tensorrt-rtx needs none.",
)
@click.option(
    "--output",
    "-o",
    required=True,
    metavar="ENGINE_DIR",
    type=FILE_PATH,
    help="The directory to write.",
)
@click.option(
    "--precision",
    metavar="fp32|fp16|bf16",
    help="Lower a float32 package first, as `moh-deploy precision` does.  [default: the package's]",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="NAME=MIN..OPT..MAX,...",
    help="Sizes of the dynamic dimensions, such as batch=1..8..32,seq=128. Repeatable: one profile"
    " each.  [default: up to four times the example's sizes]",
)
@click.option(
    "--compute-capability",
    "compute_capabilities",
    multiple=True,
    metavar="8.6 ...",
    help="GPUs to build for, all in one engine; tensorrt-rtx only.  [default: 8.0 8.6 8.9 12.0]",
)
@click.option("--workspace", metavar="SIZE", help="The most scratch memory of a layer: 4GiB.")
@click.option(
    "--timing-cache",
    metavar="FILE",
    type=FILE_PATH,
    help="Keep what tensorrt measures, for the next build on the same machine.",
)
@click.option(
    "--require-kernels", is_flag=True, help="Fail where an MoH layer would not run by kernels."
)
@click.option("--embed-plugin", is_flag=True, help="Put the plugin library into the engine.")
@click.option(
    "--plugin",
    metavar="FILE",
    type=FILE_PATH,
    help="The plugin library, libmoh_plugin.so.  [default: the installed one]",
)
@click.option(
    "--keep-onnx", is_flag=True, help="Keep the lowered model beside the engine, for trtexec."
)
@click.option("--dry-run", is_flag=True, help="Say what would be built or refused; write nothing.")
@json_option
def command(package: Path, as_json: bool, **options: object) -> None:
    """Build an engine of TensorRT or TensorRT-RTX from the package DIR."""
    from moh_deploy.api.build import build

    # The options above are named as the parameters of build.
    report = carry_out(
        lambda progress: build(package, progress=progress, **options),  # type: ignore[arg-type]
        as_json=as_json,
    )
    print_answer(report, as_json=as_json)
