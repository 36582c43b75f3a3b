"""Options and arguments that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from moh_deploy.cli.file_path import FILE_PATH

Command = TypeVar("Command", bound=Callable[..., Any])


package_argument = click.argument("package", metavar="DIR", type=FILE_PATH)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else."
)

html_option = click.option(
    "--html",
    metavar="FILE",
    type=FILE_PATH,
    help="Write one HTML page that needs nothing else.",
)

kernels_option = click.option(
    "--kernels",
    type=click.Choice(["auto", "off", "require"]),
    default="auto",
    show_default=True,
    help="Run MoH nodes on the kernel library where there is one, on their function bodies only,"
    " or fail if there is no kernel.",
)

_MODEL_OPTIONS = (
    click.option("--config", metavar="FILE.yaml", type=FILE_PATH, help="Settings from a file."),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="A setting that wins over the file's: model.kwargs.depth=2. Repeatable.",
    ),
    click.option(
        "--factory",
        metavar="MODULE:CALLABLE",
        help="What builds the model that a state dict belongs to.",
    ),
    click.option(
        "--code-dir",
        "code_dirs",
        multiple=True,
        metavar="DIR",
        type=FILE_PATH,
        help="Import the model's code from here. Repeatable.",
    ),
    click.option(
        "--state-key",
        metavar="KEY",
        help="Where a training checkpoint keeps the weights: model, ema.",
    ),
    click.option(
        "--trust-pickle",
        is_flag=True,
        help="Allow unpickling a whole module: it runs code from the file.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="Bring the model and its inputs to this dtype first. Without: as in the checkpoint.",
    ),
)


def model_options(command: Command) -> Command:
    """Add the options that say how a checkpoint is loaded; they are fields of `ModelOptions`."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


junit_option = click.option(
    "--junit", metavar="FILE", type=FILE_PATH, help="Write JUnit XML for a CI."
)

markdown_option = click.option(
    "--markdown", metavar="FILE", type=FILE_PATH, help="Write Markdown for a pull request."
)

policy_option = click.option(
    "--policy",
    metavar="FILE.yaml",
    type=FILE_PATH,
    help="Tolerances that replace those of the built-in table, each with its reason. `verify` reads"
    " there what accuracy may lose, too.",
)

baseline_file_option = click.option(
    "--baseline-file",
    metavar="FILE.json",
    type=FILE_PATH,
    help="Fail if a figure is worse than in this file, by more than its slack; see docs/ci.md.",
)

update_baseline_option = click.option(
    "--update-baseline",
    is_flag=True,
    help="Write what is new or better into that file, never what is worse.",
)
