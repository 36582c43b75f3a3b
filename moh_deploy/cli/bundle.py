"""`moh-deploy bundle`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import genai, options, values
from moh_deploy.cli.output import print_answer


@click.command("bundle")
@options.takes(
    click.argument("artefact", metavar="[DIR]", required=False, type=values.FILE_PATH),
    options.output("The bundle to write; an earlier one is replaced.", required=False),
    click.option(
        "--target",
        type=click.Choice(["triton", "genai"]),
        default="triton",
        show_default=True,
        help="The server that is to load it, or genai: onnxruntime-genai, for language models.",
    ),
    click.option(
        "--backend",
        type=click.Choice(["python", "tensorrt"]),
        help="The server's backend: python runs a package by moh-deploy, with telemetry and guard;"
        " tensorrt runs an engine (never run yet).  [default: by what DIR is]",
    ),
    click.option(
        "--name", metavar="NAME", help="What clients call the model.  [default: the directory's]"
    ),
    options.positive("--instances", "How many batches run at the same time.", default=1),
    options.positive(
        "--threads", "Threads of each instance.  [default: the cores by the instances]"
    ),
    options.BATCHING,
    options.PER_HEAD,
    options.OTLP,
    options.GUARD,
    options.path("--fallback", "DIR", "The package of the policy's rung of kind package."),
    options.SHADOW,
    options.SHADOW_SHARE,
    options.PLANTS_FAULTS,
    options.REFERENCE,
    click.option("--image", metavar="IMAGE", help="The container that kserve.yaml names."),
    click.option(
        "--storage", metavar="URI", help="Where kserve.yaml says the bundle is: pvc://models/NAME."
    ),
    options.path(
        "--check", "BUNDLE", "Say why a server on this machine would not load this bundle."
    ),
    options.path(
        "--server",
        "DIR",
        "With --check: the folder with bin/tritonserver, or an environment with nvidia-pytriton."
        "  [default: what is installed]",
    ),
    options.JSON,
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    as_json: bool,
    check: Path | None,
    server: Path | None,
    artefact: Path | None,
    output: Path | None,
    target: str,
    **given: object,
) -> None:
    """Write the package or engine DIR as a directory that Triton Inference Server loads, with
    kernels, warm-up, dashboard, alert rules and YAML for KServe; or, with --target genai, a
    language model's package as one that onnxruntime-genai opens. A package that `verify` refuses is
    not bundled. With --check, say why a server on
    this machine would not load a bundle: exit 0 if nothing stands against it, 5 if something does.
    """
    if check is not None:
        if artefact is not None or output is not None:
            raise click.UsageError("--check takes a bundle alone: leave out DIR and --output.")
        from moh_deploy.api.bundle import check_bundle

        print_answer(lambda progress: check_bundle(check, server=server), as_json=as_json)
        return
    if artefact is None or output is None:
        raise click.UsageError("name a package or engine DIR and --output, or --check BUNDLE.")
    if server is not None:
        raise click.UsageError("--server is for --check.")
    if target == "genai":
        genai.write_bundle_for_genai(ctx, artefact, output, given["threads"], as_json)  # type: ignore[arg-type]
        return
    from moh_deploy.api.bundle import bundle

    settings = {name: value for name, value in given.items() if value is not None}

    print_answer(
        lambda progress: bundle(artefact, output, **settings, progress=progress),  # type: ignore[arg-type]
        as_json=as_json,
    )
