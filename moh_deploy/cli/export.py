"""`moh-deploy export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.output import print_answer

if TYPE_CHECKING:
    from moh_deploy.frontend.export_report import ExportReport
    from moh_deploy.system.progress import SilentProgress


@click.command("export_package")
@options.takes(
    click.argument("model", type=values.FILE_PATH),
    options.output("Package to write."),
    options.MODEL_OPTIONS,
    options.path(
        "--inputs",
        "FILE.npz",
        "Example inputs; members are called as the parameters of forward, with a path into what is"
        " nested: past.0.key. Other names are the positional arguments, in file order.",
    ),
    options.many("--dynamic", "NAME:AXIS=DIM,...", "Dynamic axes of an input: x:0=batch,2=height."),
    options.many(
        "--input",
        "SPEC",
        "An example input to make up: 'x:[batch=2,3,224,224]:float32'. NAME=SIZE is a dynamic"
        " dimension, a number a fixed one; 'ids:[seq=8]:int64=0..999' has a range. Or a constant"
        " that the model is called with: use_cache=False.",
        to="input_specs",
    ),
    options.many("--output-name", "NAME", "Name of an output, in order.", to="output_names"),
    options.valid_tokens_input(
        "The input that is 1 for valid tokens and 0 for padding, [batch, tokens], or that is added"
        " to scores, 0 for valid tokens; `not NAME`: 1 for padding, as PyTorch's key_padding_mask."
        " Padding is not compared, here and wherever the package is. `all` compares all tokens."
        "  [default: what the graph shows to be such an input]"
    ),
    click.option("--opset", type=int, metavar="N", help="ONNX operator set."),
    click.option(
        "--compute-type",
        type=click.Choice(["float32", "bfloat16"]),
        help="What CPU kernels may round the operands of attention's matrix products to. bfloat16"
        " is faster where the processor has it (amx_bf16, avx512_bf16), and less exact."
        "  [default: float32]",
    ),
    options.cache(
        "in-place",
        "concatenated",
        help="in-place: a decoder takes caches with room, and writes new keys and values into them;"
        " concatenated: it returns a longer copy of each, as it was written."
        "  [default: concatenated]",
    ),
    click.option(
        "--require-layers",
        metavar="N|all",
        callback=values.number_or_word,
        help="Fail (exit 4) unless at least N MoH layers were replaced; all: unless all were, 1 or"
        " more, and nothing else looks like one; 0: whatever was.",
    ),
    click.option(
        "--verbose", is_flag=True, help="Say on stderr where time went: each step and its seconds."
    ),
    options.JSON,
)
def command(as_json: bool, verbose: bool, **given: object) -> None:
    """Turn MODEL, of PyTorch (.pt, .pth, .safetensors, .pt2) or .onnx, into a verified package.

    MODEL may be a directory with config.json and weights, as Hugging Face lays it out.

    An ONNX file needs no code and no example inputs: docs/onnx-input.md.
    """
    from moh_deploy.config.options import ExportOptions
    from moh_deploy.frontend.export_package import export_package
    from moh_deploy.system.progress import seconds_text

    job = ExportOptions(**given)  # type: ignore[arg-type]

    def export(progress: SilentProgress) -> ExportReport:
        try:
            return export_package(job, progress=progress)
        finally:  # of an export that fails, too
            if verbose:
                click.echo(seconds_text(progress.seconds), err=True)

    print_answer(export, as_json=as_json)
