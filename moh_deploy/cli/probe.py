"""`moh-deploy probe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moh_deploy.cli.common_options import (
    json_option,
    junit_option,
    kernels_option,
    model_options,
    package_argument,
    policy_option,
)
from moh_deploy.cli.file_path import FILE_PATH
from moh_deploy.cli.output import print_answer

if TYPE_CHECKING:
    from moh_deploy.runtime.runner import Kernels


@click.command("probe")
@package_argument
@click.option(
    "--inputs",
    multiple=True,
    metavar="FILE.npz|DIR",
    type=FILE_PATH,
    help="Search these inputs for the tokens whose choice of heads is least clear. Repeatable.",
)
@click.option(
    "--update-corpus",
    is_flag=True,
    help="Keep what was found in the regression corpus of the package, which `verify` runs too.",
)
@click.option(
    "--valid-tokens",
    metavar="NAME",
    help="The input that is 1 for valid tokens and 0 for padding, [batch, tokens]: for the case of"
    " padding only. Padding is not searched, either.",
)
@click.option(
    "--longest",
    multiple=True,
    metavar="DIM=N",
    help="What counts as longest, in place of what the trace is good for or what fits into memory."
    " Repeatable.",
)
@policy_option
@junit_option
@click.option(
    "--checkpoint",
    metavar="FILE",
    type=FILE_PATH,
    help="The original model: it, and not the function bodies, records what is found in the inputs."
    " Options that say how it is loaded are those of `moh-deploy export`.",
)
@kernels_option
@model_options
@json_option
def command(
    package: Path,
    inputs: tuple[Path, ...],
    update_corpus: bool,
    valid_tokens: str | None,
    longest: tuple[str, ...],
    policy: Path | None,
    junit: Path | None,
    checkpoint: Path | None,
    kernels: Kernels,
    as_json: bool,
    **loading: object,
) -> None:
    """Run the package DIR on edge cases (ties, saturated and NaN logits, no token, padding only)
    and on its regression corpus: exit 1 if one fails."""
    from moh_deploy.api.probe import parse_longest
    from moh_deploy.cli.probe_apart import ProbeTask, probe_apart
    from moh_deploy.cli.report_files import probe_files

    task = ProbeTask(
        package,
        inputs,
        update_corpus,
        valid_tokens,
        tuple(parse_longest(longest).items()),
        kernels,
        policy,
        checkpoint,
        loading,
        quiet=as_json,
    )
    files = probe_files(str(package), junit=junit)
    report = files.write_on(lambda: probe_apart(task))
    print_answer(report, as_json=as_json, package=str(package))
