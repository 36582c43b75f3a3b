"""`moh-deploy bundle`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import genai, options
from moh_deploy.cli.output import print_answer


@click.command("bundle")
@options.takes(*options.BUNDLE)
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
    language model's package as one that onnxruntime-genai opens. With --check, say why a server on
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

    print_answer(
        lambda progress: bundle(artefact, output, **given, progress=progress),  # type: ignore[arg-type]
        as_json=as_json,
    )
