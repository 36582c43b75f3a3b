"""Options of samples with labels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

import click

from moh_deploy.cli.file_path import NAME_OR_PATH

if TYPE_CHECKING:
    from moh_deploy.validate.accuracy.metric_parity import Better

Command = TypeVar("Command", bound=Callable[..., Any])


class LabelOptions(TypedDict):
    """Keyword arguments of `verify`."""

    labels: str | None
    metric: tuple[str, ...]
    better: Better | None
    label_output: str | None
    ignore_label: int
    shift_labels: bool
    batch_size: int | None


def label_options(command: Command) -> Command:
    """Add the options to a command, which takes them as one argument, `scoring`."""

    @functools.wraps(command)
    def packed(*args: Any, **kwargs: Any) -> Any:
        scoring = {name: kwargs.pop(name) for name in LabelOptions.__annotations__}
        return command(*args, scoring=scoring, **kwargs)

    for option in reversed(_OPTIONS):
        packed = option(packed)
    return cast("Command", packed)


_OPTIONS = (
    click.option(
        "--labels",
        type=NAME_OR_PATH,
        metavar="FILE|MEMBER",
        help="Labels of the samples in --inputs: a npy, npz or csv file, or a member of the inputs"
        " files. [N] classes, or [N, S] tokens. Then samples run in batches, and accuracy is"
        " compared, too.",
    ),
    click.option(
        "--metric",
        multiple=True,
        metavar="NAME",
        help="top-1, top-5, perplexity, or MODULE:FUNCTION, which takes outputs by name and labels"
        " and returns a score for each sample; --code-dir says where it is. Without: top-1 for [N],"
        " perplexity for [N, S]. Repeatable.",
    ),
    click.option(
        "--better",
        type=click.Choice(["higher", "lower"]),
        help="Which scores of MODULE:FUNCTION are better.",
    ),
    click.option(
        "--label-output", metavar="NAME", help="The output to score, where shapes do not tell."
    ),
    click.option(
        "--ignore-label",
        metavar="NUMBER",
        type=int,
        default=-100,
        show_default=True,
        help="Labels of this number are not scored.",
    ),
    click.option(
        "--shift-labels",
        is_flag=True,
        help="Labels are the tokens that the model is given: an output is scored with the label of"
        " the next position. Without, with that of its own.",
    ),
    click.option(
        "--batch-size",
        metavar="N",
        type=click.IntRange(min=1),
        help="Samples that run at once, if there are labels.",
    ),
)
