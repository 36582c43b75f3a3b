"""`moh-deploy verify`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import genai, options
from moh_deploy.cli.against import named_references
from moh_deploy.cli.original import taken_model_options
from moh_deploy.cli.output import print_answer
from moh_deploy.cli.report_files import FileFormat, ReportFiles


@click.command("verify")
@options.takes(*options.VERIFY)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    package_dir: Path,
    against: tuple[str, ...],
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    as_json: bool,
    **given: object,
) -> None:
    """Compare the package or engine DIR with what the original model computed, or with what
    --against names: exit 0 if equal, 1 if not. Of a bundle for genai, onnxruntime-genai runs it,
    and its greedy tokens are compared.

    Options that say how a checkpoint is loaded are those of `moh-deploy export`."""
    loading = taken_model_options(given)
    if genai.names_genai_bundle(package_dir):
        genai.verify_by_genai(ctx, package_dir, against, loading, as_json)
        return
    from moh_deploy.api.verify import verify

    shared = ("code_dirs",) if given["metric"] else ()  # the code of a metric is there, too
    paths: dict[FileFormat, Path | None] = {"junit": junit, "markdown": markdown, "html": html}
    files = ReportFiles("verify", str(package_dir), paths, ctx.obj or ())
    print_answer(
        lambda progress: files.write_on(
            lambda: verify(
                package_dir,
                against=named_references(against, loading, shared),
                code_dirs=loading["code_dirs"],  # type: ignore[arg-type]
                progress=progress,
                **given,  # type: ignore[arg-type]
            )
        ),
        as_json=as_json,
        package=str(package_dir),
    )
