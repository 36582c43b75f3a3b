"""`moh-deploy probe`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import options
from moh_deploy.cli.original import taken_model_options
from moh_deploy.cli.output import print_answer


@click.command("probe")
@options.takes(*options.PROBE)
def command(package_dir: Path, junit: Path | None, as_json: bool, **given: object) -> None:
    """Run the package DIR on edge cases (ties, saturated and NaN logits, no token, padding only)
    and on its regression corpus: exit 1 if one fails."""
    from moh_deploy.cli.isolated_probe import ProbeTask, isolated_probe
    from moh_deploy.cli.report_files import ReportFiles

    loading = taken_model_options(given)
    task = ProbeTask(package_dir, loading=loading, quiet=as_json, **given)  # type: ignore[arg-type]
    files = ReportFiles("probe", str(package_dir), {"junit": junit})
    print_answer(
        lambda _: files.write_on(lambda: isolated_probe(task)),
        as_json=as_json,
        package=str(package_dir),
    )
