"""`moh-deploy compare` and `cost`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, Unpack

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.command import Argument, Under, command
from moh_deploy.cli.failure import writing_stdout
from moh_deploy.cli.output import print_answer, write_files
from moh_deploy.system.bounded_json import to_json_text

if TYPE_CHECKING:
    from moh_deploy.api.export import ModelSettings
    from moh_deploy.frontend.prove.eager import EagerModel


class ToCompare(TypedDict):
    paths: Annotated[tuple[Path, ...], Argument("[PATH]...", -1)]
    plan: Annotated[
        Path | None,
        "FILE.yaml",
        "The plan: alternatives, metrics, margins, written before the data.",
    ]
    earlier: Annotated[
        Path | None,
        "FILE.json",
        "The JSON report of the look before, where the plan allows several.",
    ]
    inputs: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "Labelled samples.",
        Under("Without a plan"),
    ]
    labels: Annotated[
        str | None,
        "FILE|MEMBER",
        "Their labels. Without these time alone decides.",
        values.name_or_path(),
        Under("Without a plan"),
    ]
    metric: Annotated[
        str | None,
        "NAME",
        "What is scored.  [default: top-1]",
        values.METRIC_NAME,
        Under("Without a plan"),
    ]
    may_lose: Annotated[
        float | None,
        "LOSS",
        "How much of the metric an alternative may lose, in its own units.  [default: 0.005]",
        Under("Without a plan"),
    ]
    at_least: Annotated[
        float | None,
        "SHARE",
        "The share of the reference's median time that has to be saved.  [default: 0.1]",
        Under("Without a plan"),
    ]
    seconds: Annotated[
        float | None,
        "N",
        "How long all alternatives run in turns.  [default: 10]",
        Under("Without a plan"),
    ]
    threads: Annotated[
        int | None,
        "N",
        "Threads within an operator.  [default: as the runtime chooses]",
        Under("Without a plan"),
    ]
    keep_scores: Annotated[
        Path | None,
        "DIR",
        "Keep scores of samples, by blocks: an interrupted comparison goes on there.",
        Under("Running it"),
    ]
    ray: Annotated[
        str | None,
        "ADDRESS|auto",
        "A Ray cluster that scores samples; times are of this machine.",
        Under("Running it"),
    ]
    trust_pickle: Annotated[options.TrustPickle, Under("Running it")]
    trust_code: Annotated[options.TrustCode, Under("Running it")]


@command("compare", page="compare")
def compare_command(
    new_plan: Annotated[Path | None, "FILE.yaml", "Write a plan to fill in, and do nothing else."],
    files: options.ReportPages,
    as_json: options.Json,
    **given: Unpack[ToCompare],
) -> None:
    """Decide by a plan which of several ways to serve a model is worth it: packages PATH, the first
    is the reference, or the alternatives of the plan, made ones too.

    Example:
        moh-deploy compare build/model build/int8 --inputs val.npz --labels labels.npy
    """
    from moh_deploy.decision.api.compare import compare
    from moh_deploy.decision.api.compare import new_plan as write_new_plan

    if new_plan is not None:
        written = write_new_plan(new_plan)
        text = f"{written}: fill it in before you look at any data."
        with writing_stdout():
            click.echo(to_json_text({"plan": str(written)}) if as_json else text)
        return
    print_answer(
        lambda progress: write_files(
            files,
            str(given["plan"] or ", ".join(map(str, given["paths"]))),
            lambda: compare(load_original=_load_original, progress=progress, **given),
        ),
        as_json=as_json,
    )


def _load_original(model: Path, **settings: Unpack["ModelSettings"]) -> "EagerModel":
    """Load a checkpoint; torch is imported only where a plan has one."""
    from moh_deploy.api.export import load_original

    return load_original(model, **settings)


class ToPrice(TypedDict):
    decision: Annotated[
        Path, "--from FILE.json", "The decision: what `moh-deploy compare --json` printed."
    ]
    prices: Annotated[Path, "FILE.yaml", "What machines and people cost."]
    traffic: Annotated[
        Path,
        "FILE.csv",
        "A column for each dimension, and `count`, or `timestamp` where each line is a request.",
    ]
    days: Annotated[
        float | None,
        "N",
        "How many days the traffic is of.  [default: a month for counts, what its timestamps"
        " span for a log]",
    ]
    extrapolate: Annotated[
        bool, "Take sizes that lie between two measured ones from their times, and mark them."
    ]
    package: Annotated[
        Path | None,
        "DIR",
        "Predict for this package where skipping heads breaks even: by layer, in batch size and in"
        " the share of open heads.",
    ]


@command("cost", page="cost")
def cost_command(
    files: options.ReportPages, as_json: options.Json, **given: Unpack[ToPrice]
) -> None:
    """Price the alternatives of a decision for your traffic: what a month costs, what an
    alternative saves, and when it has paid for the engineering. Nothing is timed.

    Example:
        moh-deploy cost --from decision.json --prices prices.yaml --traffic log.csv
    """
    from moh_deploy.decision.api.cost import cost

    print_answer(
        lambda progress: write_files(files, str(given["decision"]), lambda: cost(**given)),
        as_json=as_json,
    )
