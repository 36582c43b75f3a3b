"""`moh-deploy tune`."""

from __future__ import annotations

from collections.abc import Mapping

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.output import print_answer
from moh_deploy.errors import ConfigError

# What has a meaning with --within only, and what has none with it.
_ITS_OWN = (
    "output",
    "labels",
    "label_output",
    "ignore_label",
    "shift_labels",
    "batch_size",
    "code_dirs",
)
_NOT_ITS = ("choose",)


@click.command("tune")
@options.takes(
    options.PACKAGE,
    options.inputs(
        "Measure on these inputs instead of the recorded ones; what is chosen is good for their"
        " sizes."
    ),
    click.option(
        "--weight",
        "weights",
        multiple=True,
        metavar="N",
        type=float,
        help="How often a file of --inputs counts, in their order, in a directory that of names: 1"
        " for a prefill, 200 for a decoding step. Repeatable.  [default: 1 each]",
    ),
    options.RUNTIME,
    options.threads(
        "Threads within an operator. One thread is measured by CPU time, several by wall time."
    ),
    options.min_time("How long each comparison takes at least.", default="500ms"),
    options.many(
        "--choose",
        "LAYER=CHOICE",
        "Do not measure: let this layer, or all, be dense, sparse or projected;"
        " 'LAYER[seq<=64]=dense' up to a size only.",
        callback=values.read_all(values.parse_choices),
    ),
    options.flag(
        "--one-choice",
        "Let no choice depend on sizes: each layer gets the one that is fastest for all inputs"
        " together.",
    ),
    options.many(
        "--within",
        "CONDITION",
        "Choose the runtime and the precision, too: the fastest of all that are there under this"
        " condition, such as 'top-1 >= 0.98 * reference' (with --labels), 'flips <= 0.1 %' or"
        " 'parity'. DIR is in float32 and stays as it is. --runtime tries one only.",
    ),
    options.output("With --within: the package to write.", required=False),
    options.LABEL_FILE,
    options.SCORING_OPTIONS,
    options.many(
        "--code-dir",
        "DIR",
        "Where the module of a metric is.",
        to="code_dirs",
        type=values.FILE_PATH,
    ),
    options.flag("--dry-run", "Measure and report, but write nothing."),
    options.JSON,
)
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, within: tuple[str, ...], **given: object) -> None:
    """Measure on this machine how each MoH layer of the package DIR runs fastest, and write that
    into the package: dense where skipping heads does not pay.

    With --within, find the runtime and the precision as well that are fastest and still good."""
    if not within:
        _refuse(ctx, _ITS_OWN, "is of --within, which is not given")
        from moh_deploy.api.tune import tune

        own = _without(given, _ITS_OWN)
        print_answer(lambda progress: tune(**own, progress=progress), as_json=as_json)  # type: ignore[arg-type]
        return
    _refuse(ctx, _NOT_ITS, "says how layers run, which --within measures")
    from moh_deploy.api.tune_within import tune_within

    searched = _without(given, _NOT_ITS)
    print_answer(
        lambda progress: tune_within(within=within, **searched, progress=progress),  # type: ignore[arg-type]
        as_json=as_json,
    )


def _refuse(ctx: click.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options that would be ignored without a word."""
    default = click.core.ParameterSource.DEFAULT
    asked = [param for param in ctx.command.params if param.name in names]
    for parameter in asked:
        if ctx.get_parameter_source(str(parameter.name)) is not default:
            raise ConfigError(f"{parameter.opts[0]} {why}: leave it out.")


def _without(given: Mapping[str, object], names: tuple[str, ...]) -> dict[str, object]:
    return {name: value for name, value in given.items() if name not in names}
