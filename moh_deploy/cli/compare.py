"""`moh-deploy compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer
from moh_deploy.cli.report_files import FileFormat, ReportFiles

if TYPE_CHECKING:
    from moh_deploy.frontend.prove.eager import EagerModel


@click.command("compare")
@options.takes(*options.COMPARE)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    paths: tuple[Path, ...],
    plan: Path | None,
    new_plan: Path | None,
    markdown: Path | None,
    html: Path | None,
    as_json: bool,
    **given: object,
) -> None:
    """Decide by a plan which of several ways to serve a model is worth it: packages PATH, the first
    is the reference, or the arms of the plan, made ones too."""
    from moh_deploy.api.compare import compare
    from moh_deploy.api.compare import new_plan as write_new_plan

    if new_plan is not None:
        click.echo(f"{write_new_plan(new_plan)}: fill it in before you look at any data.")
        return
    subject = str(plan) if plan is not None else ", ".join(map(str, paths))
    files_asked: dict[FileFormat, Path | None] = {"markdown": markdown, "html": html}
    files = ReportFiles("compare", subject, files_asked, ctx.obj or ())
    print_answer(
        lambda progress: files.write_on(
            lambda: compare(
                paths,
                plan=plan,
                load_original=_load_original,
                progress=progress,
                **given,  # type: ignore[arg-type]
            )
        ),
        as_json=as_json,
    )


def _load_original(model: Path, **settings: object) -> EagerModel:
    """Load a checkpoint; torch is imported only where a plan has one."""
    from moh_deploy.api.export import load_original

    return load_original(model, **settings)  # type: ignore[arg-type]
