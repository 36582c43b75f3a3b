"""`moh-deploy drill`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer
from moh_deploy.cli.report_files import FileFormat, ReportFiles


@click.command("drill")
@options.takes(*options.DRILL)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    package_dir: Path,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    as_json: bool,
    **given: object,
) -> None:
    """Serve the package or bundle DIR with a guard, under load, and plant one fault after the
    other: exit 1 if a wrong answer gets out where the fault can be seen, or the first rung does not
    come back."""
    from moh_deploy.api.drill import drill

    paths: dict[FileFormat, Path | None] = {"junit": junit, "markdown": markdown, "html": html}
    files = ReportFiles("drill", str(package_dir), paths, ctx.obj or ())
    print_answer(
        lambda progress: files.write_on(
            lambda: drill(package_dir, progress=progress, **given)  # type: ignore[arg-type]
        ),
        as_json=as_json,
    )
