"""`moh-deploy watch`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.output import FileFormat, ReportFiles, print_answer


@click.command("watch")
@options.takes(
    click.argument("source"),
    options.path("--reference", "FILE.json", "What `moh-deploy profile` wrote.", required=True),
    click.option(
        "--every",
        metavar="TIME",
        default="60s",
        show_default=True,
        callback=values.seconds,
        help="Time between two looks at metrics.",
    ),
    click.option(
        "--windows",
        metavar="N",
        type=int,
        default=1,
        show_default=True,
        help="How often to look at metrics after the first time.",
    ),
    options.REPORT_FILES,
    options.JSON,
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    source: str,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    as_json: bool,
    **given: object,
) -> None:
    """Compare live routing with a reference: SOURCE is the address of a server's metrics, or a dump
    of its window. Exit 1 if it is not as it was, or if there is no data."""
    from moh_deploy.api.watch import watch

    paths: dict[FileFormat, Path | None] = {"junit": junit, "markdown": markdown, "html": html}
    files = ReportFiles("watch", source, paths, ctx.obj or ())
    print_answer(
        lambda progress: files.write_on(lambda: watch(source, progress=progress, **given)),  # type: ignore[arg-type]
        as_json=as_json,
    )
