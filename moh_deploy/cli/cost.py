"""`moh-deploy cost`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.output import FileFormat, ReportFiles, print_answer


@click.command("cost")
@options.takes(
    click.option(
        "--from",
        "decision",
        required=True,
        metavar="FILE.json",
        type=values.FILE_PATH,
        help="The decision: what `moh-deploy compare --json` printed.",
    ),
    options.path("--prices", "FILE.yaml", "What machines and people cost.", required=True),
    options.path(
        "--traffic",
        "FILE.csv",
        "A column for each dimension, and `count`, or `timestamp` where each line is a request.",
        required=True,
    ),
    click.option(
        "--days",
        type=float,
        metavar="N",
        help="How many days the traffic is of.  [default: a month for counts, what its timestamps"
        " span for a log]",
    ),
    options.flag(
        "--extrapolate",
        "Take sizes that lie between two measured ones from their times, and mark them.",
    ),
    options.path(
        "--package",
        "DIR",
        "Predict for this package where skipping heads breaks even: by layer, in batch size and in"
        " the share of open heads.",
    ),
    options.REPORT_FILES[1:],
    options.JSON,
)
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
