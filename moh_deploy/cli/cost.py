"""`moh-deploy cost`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import print_answer
from moh_deploy.cli.report_files import FileFormat, ReportFiles


@click.command("cost")
@options.takes(*options.COST)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    decision: Path,
    prices: Path,
    traffic: Path,
    days: float | None,
    extrapolate: bool,
    package: Path | None,
    markdown: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Price the arms of a decision for your traffic: what a month costs, what an arm saves, and
    when it has paid for the engineering. Nothing is timed."""
    from moh_deploy.api.cost import cost

    files_asked: dict[FileFormat, Path | None] = {"markdown": markdown, "html": html}
    files = ReportFiles("cost", str(decision), files_asked, ctx.obj or ())
    print_answer(
        lambda progress: files.write_on(
            lambda: cost(
                decision,
                prices=prices,
                traffic=traffic,
                days=days,
                extrapolate=extrapolate,
                package=package,
            )
        ),
        as_json=as_json,
    )
