"""`moh-deploy export`."""

from __future__ import annotations

import click

from moh_deploy.cli.common_options import json_option, model_options
from moh_deploy.cli.file_path import FILE_PATH
from moh_deploy.cli.output import carry_out, print_report


@click.command("export")
@click.argument("model", type=FILE_PATH)
@click.option(
    "--output", "-o", required=True, metavar="DIR", type=FILE_PATH, help="Package to write."
)
@model_options
@click.option(
    "--inputs",
    metavar="FILE.npz",
    type=FILE_PATH,
    help="Example inputs; its members are the positional arguments, in file order.",
)
@click.option(
    "--dynamic",
    multiple=True,
    metavar="NAME:AXIS=DIM,...",
    help="Dynamic axes of an input: x:0=batch,2=height. Repeatable.",
)
@click.option(
    "--input",
    "input_specs",
    multiple=True,
    metavar="SPEC",
    help="An example input to make up: 'x:[batch=2,3,224,224]:float32'. NAME=SIZE is a dynamic"
    " dimension, a number a fixed one. Repeatable.",
)
@click.option(
    "--output-name",
    "output_names",
    multiple=True,
    metavar="NAME",
    help="Name of an output, in order. Repeatable.",
)
@click.option("--opset", type=int, metavar="N", help="ONNX operator set.")
@click.option(
    "--compute-type",
    type=click.Choice(["float32", "bfloat16"]),
    help="What CPU kernels may round the operands of attention's matrix products to. bfloat16 is"
    " faster where the processor has it (avx512_bf16), and less exact.  [default: float32]",
)
@json_option
def command(as_json: bool, **options: object) -> None:
    """Turn the PyTorch MODEL (.pt, .pth, .safetensors, .pt2) into a verified ONNX package."""
    from moh_deploy.api.export_package import export
    from moh_deploy.config.options import ExportOptions

    # The options above are named as the fields of ExportOptions.
    job = ExportOptions(**options)  # type: ignore[arg-type]
    report = carry_out(lambda progress: export(job, progress=progress), as_json=as_json)
    print_report(report, as_json=as_json)
