"""`moh-deploy compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.failure import writing_stdout
from moh_deploy.cli.output import FileFormat, ReportFiles, print_answer
from moh_deploy.system.bounded_json import to_json_text

if TYPE_CHECKING:
    from moh_deploy.frontend.prove.eager import EagerModel


@click.command("compare")
@options.takes(
    click.argument("paths", metavar="[PATH]...", nargs=-1, type=values.FILE_PATH),
    options.path(
        "--plan", "FILE.yaml", "The plan: arms, metrics, margins, written before the data."
    ),
    options.path("--new-plan", "FILE.yaml", "Write a plan to fill in, and do nothing else."),
    options.path(
        "--earlier",
        "FILE.json",
        "The JSON report of the look before, where the plan allows several.",
    ),
    options.inputs("Without a plan: labelled samples."),
    click.option(
        "--labels",
        metavar="FILE|MEMBER",
        type=values.NAME_OR_PATH,
        help="Without a plan: their labels. Without these time alone decides.",
    ),
    click.option(
        "--metric", metavar="NAME", help="Without a plan: what is scored.  [default: top-1]"
    ),
    click.option(
        "--may-lose",
        type=float,
        metavar="LOSS",
        help="Without a plan: how much of the metric an arm may lose, in its own units."
        "  [default: 0.005]",
    ),
    click.option(
        "--at-least",
        type=float,
        metavar="SHARE",
        help="Without a plan: the share of the reference's median time that has to be saved."
        "  [default: 0.1]",
    ),
    click.option(
        "--seconds",
        type=float,
        metavar="N",
        help="Without a plan: how long all arms run in turns.  [default: 10]",
    ),
    options.threads("Without a plan: threads within an operator."),
    options.path(
        "--keep-scores",
        "DIR",
        "Keep scores of samples, by blocks: an interrupted comparison goes on there.",
    ),
    click.option(
        "--ray",
        metavar="ADDRESS|auto",
        help="A Ray cluster that scores samples; times are of this machine.",
    ),
    options.TRUST_PICKLE,
    options.TRUST_CODE,
    options.REPORT_FILES[1:],
    options.JSON,
)
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
        written = write_new_plan(new_plan)
        text = f"{written}: fill it in before you look at any data."
        with writing_stdout():
            click.echo(to_json_text({"plan": str(written)}) if as_json else text)
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
