"""`moh-deploy build`."""

from __future__ import annotations

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer
from moh_deploy.cli.values import ManyValues


@click.command("build", cls=ManyValues, many={"--compute-capability": r"\d+\.\d+"})
@options.takes(
    options.PACKAGE,
    click.option(
        "--backend",
        required=True,
        type=click.Choice(["tensorrt", "tensorrt-rtx"]),
        help="What builds and runs the engine. tensorrt builds for the GPU of this machine;"
        " tensorrt-rtx needs none.",
    ),
    options.output("The directory to write.", metavar="ENGINE_DIR"),
    click.option(
        "--precision",
        metavar="float32|float16|bfloat16",
        help="Lower a float32 package first, as `moh-deploy precision` does."
        "  [default: the package's]",
    ),
    click.option(
        "--profile",
        "profiles",
        multiple=True,
        metavar="NAME=MIN..OPT..MAX,...",
        help="Sizes of the dynamic dimensions, such as batch=1..8..32,seq=128. Repeatable: one"
        " profile each.  [default: up to four times the example's sizes]",
    ),
    click.option(
        "--compute-capability",
        "compute_capabilities",
        multiple=True,
        metavar="8.6 ...",
        help="GPUs to build for, all in one engine; tensorrt-rtx only."
        "  [default: 8.0 8.6 8.9 12.0]",
    ),
    options.cache(
        "in-place",
        help="Build from the package with its caches in place, as export --cache in-place writes"
        " it: TensorRT 10.15 or later.  [default: as the package has them]",
    ),
    click.option("--workspace", metavar="SIZE", help="The most scratch memory of a layer: 4GiB."),
    options.path(
        "--timing-cache",
        "FILE",
        "Keep what tensorrt measures, for the next build on the same machine.",
    ),
    options.flag(
        "--require-kernels",
        "Let kernels run whatever they take, timed or not; fail where an MoH layer would not run by"
        " them.",
    ),
    options.flag("--plain", "Use no kernels: the engine that others are to be compared with."),
    options.flag("--embed-plugin", "Put the plugin library into the engine."),
    options.path(
        "--plugin", "FILE", "The plugin library, libmoh_plugin.so.  [default: the installed one]"
    ),
    options.flag("--keep-onnx", "Keep the lowered model beside the engine, for trtexec."),
    options.flag(
        "--version-compatible", "Let later versions of TensorRT run the engine; tensorrt only."
    ),
    click.option(
        "--hardware-compatibility",
        type=click.Choice(["ampere-plus", "same-compute-capability"]),
        help="Let other GPUs run the engine; tensorrt only.",
    ),
    options.flag("--dry-run", "Say what would be built or refused; write nothing."),
    options.JSON,
)
def command(as_json: bool, **given: object) -> None:
    """Build an engine of TensorRT or TensorRT-RTX from the package DIR."""
    from moh_deploy.api.build import build

    print_answer(lambda progress: build(**given, progress=progress), as_json=as_json)  # type: ignore[arg-type]
