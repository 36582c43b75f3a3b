"""`moh-deploy drill`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import options
from moh_deploy.cli.output import FileFormat, ReportFiles, print_answer


@click.command("drill")
@options.takes(
    options.PACKAGE,
    options.many(
        "--fault",
        "nan|gates|slow|crash|drift|missing-library|wrong|kill",
        "Plant this, and no other.  [default: all]",
        to="faults",
    ),
    options.path(
        "--policy",
        "FILE.yaml",
        "The guard's policy, as `serve` takes it.  [default: one of short cool-downs]",
    ),
    click.option(
        "--clients",
        metavar="N",
        type=click.IntRange(1, 256),
        default=4,
        show_default=True,
        help="How many ask at the same time.",
    ),
    options.time("--seconds", "How long the load runs before, and each fault stays.", default="3s"),
    options.time(
        "--trip-timeout", "How long a fault stays that the guard has not noticed.", default="10s"
    ),
    options.time(
        "--return-timeout", "How long the first level may take to come back.", default="60s"
    ),
    options.flag(
        "--in-process", "Serve in this process, by no protocol: without a worker to kill."
    ),
    options.path(
        "--tritonserver",
        "DIR",
        "Serve a bundle by this Triton: the folder with bin/tritonserver, or an environment with"
        " nvidia-pytriton.  [default: moh-deploy serve]",
    ),
    click.option(
        "--url",
        metavar="http://HOST:PORT",
        help="Break this server, which runs with --guard and --drill; its files have to be here.",
    ),
    click.option("--name", help="What that server calls the model.  [default: of the bundle]"),
    options.path("--control", "FILE", "Its control file.  [default: that of the bundle]"),
    options.path("--audit-log", "FILE", "Its audit log.  [default: that of the bundle]"),
    options.REPORT_FILES,
    options.JSON,
)
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
    other: exit 1 if a wrong answer gets out where the fault can be seen, or the first level does
    not come back."""
    from moh_deploy.api.drill import drill

    paths: dict[FileFormat, Path | None] = {"junit": junit, "markdown": markdown, "html": html}
    files = ReportFiles("drill", str(package_dir), paths, ctx.obj or ())
    print_answer(
        lambda progress: files.write_on(
            lambda: drill(package_dir, progress=progress, **given)  # type: ignore[arg-type]
        ),
        as_json=as_json,
    )
