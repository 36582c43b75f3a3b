"""`moh-deploy verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moh_deploy.cli.against import named_references
from moh_deploy.cli.common_options import (
    baseline_file_option,
    html_option,
    json_option,
    junit_option,
    kernels_option,
    markdown_option,
    model_options,
    package_argument,
    policy_option,
    update_baseline_option,
)
from moh_deploy.cli.file_path import FILE_PATH, NAME_OR_PATH
from moh_deploy.cli.label_options import LabelOptions, label_options
from moh_deploy.cli.output import carry_out, print_answer
from moh_deploy.cli.report_files import verify_files

if TYPE_CHECKING:
    from moh_deploy.runtime.runner import Kernels


@click.command("verify")
@package_argument
@click.option(
    "--inputs",
    multiple=True,
    metavar="FILE.npz|DIR",
    type=FILE_PATH,
    help="Compare on these inputs instead of the recorded ones. Members named like outputs are the"
    " expected outputs; without them the reference is the package's own function bodies, run"
    " with optimisations off. Of a directory all *.npz are taken. Repeatable.",
)
@click.option(
    "--against",
    type=NAME_OR_PATH,
    multiple=True,
    metavar="WHAT",
    help="What to compare with instead: `functions` (its function bodies, optimisations off),"
    " `kernels`, `recorded`, another package or engine, an ONNX model, or the checkpoint (.pt,"
    " .safetensors, .pt2), which PyTorch runs. Repeatable.",
)
@click.option(
    "--valid-tokens",
    metavar="NAME",
    help="The input, or member of the files, that is 1 for valid tokens and 0 for padding,"
    " [batch, tokens]: what is computed for padding is not compared.",
)
@click.option(
    "--vectors",
    metavar="N",
    type=int,
    help="Compare with the first N recorded runs only; the first is at the example's sizes.",
)
@click.option(
    "--package",
    "source",
    metavar="DIR",
    type=FILE_PATH,
    help="The package that an engine was built from, if an engine is verified.",
)
@click.option("--staged", is_flag=True, hidden=True)  # for whoever writes the package
@policy_option
@junit_option
@markdown_option
@html_option
@baseline_file_option
@update_baseline_option
@label_options
@kernels_option
@model_options
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    package: Path,
    inputs: tuple[Path, ...],
    against: tuple[str, ...],
    valid_tokens: str | None,
    vectors: int | None,
    source: Path | None,
    staged: bool,
    policy: Path | None,
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    baseline_file: Path | None,
    update_baseline: bool,
    kernels: Kernels,
    as_json: bool,
    scoring: LabelOptions,
    code_dirs: tuple[Path, ...],
    **loading: object,
) -> None:
    """Compare the package or engine DIR with what the original model computed, or with what
    --against names: exit 0 if equal, 1 if not.

    Options that say how a checkpoint is loaded are those of `moh-deploy export`."""
    from moh_deploy.api.verify import verify

    shared = ("code_dirs",) if scoring["metric"] else ()  # the code of a metric is there, too
    files = verify_files(str(package), ctx.obj or (), junit=junit, markdown=markdown, html=html)
    report = carry_out(
        lambda progress: files.write_on(
            lambda: verify(
                package,
                inputs=inputs,
                against=named_references(against, {**loading, "code_dirs": code_dirs}, shared),
                valid_tokens=valid_tokens,
                vectors=vectors,
                kernels=kernels,
                package=source,
                staged=staged,
                policy=policy,
                baseline_file=baseline_file,
                update_baseline=update_baseline,
                **scoring,
                code_dirs=code_dirs,
                progress=progress,
            )
        ),
        as_json=as_json,
    )
    print_answer(report, as_json=as_json, package=str(package))
