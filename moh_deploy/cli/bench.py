"""`moh-deploy bench`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import options
from moh_deploy.cli.many_values import ManyValues
from moh_deploy.cli.original import original_of, taken_model_options
from moh_deploy.cli.output import print_answer
from moh_deploy.cli.report_files import FileFormat, ReportFiles


@click.command("bench", cls=ManyValues, many={"--batch": r"\d+", "--size": r"[A-Za-z_]\w*=\d+"})
@options.takes(*options.BENCH)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    package_dirs: tuple[Path, ...],
    checkpoint: Path | None,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    as_json: bool,
    **given: object,
) -> None:
    """Measure latency, throughput and memory of the packages or engines DIR, in turns with
    baselines: exit 1 if a gate does not pass."""
    from moh_deploy.api.bench import bench

    loading = taken_model_options(given)
    subject = ", ".join(map(str, package_dirs))
    paths: dict[FileFormat, Path | None] = {"junit": junit, "markdown": markdown, "html": html}
    files = ReportFiles("bench", subject, paths, ctx.obj or ())
    print_answer(
        lambda progress: files.write_on(
            lambda: bench(
                package_dirs,
                original=original_of(checkpoint, loading, progress),
                progress=progress,
                **given,  # type: ignore[arg-type]
            )
        ),
        as_json=as_json,
    )
