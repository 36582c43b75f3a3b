"""`moh-deploy generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.failure import writing_stdout
from moh_deploy.cli.original import given_model_options, open_original, taken_model_options
from moh_deploy.cli.output import print_answer
from moh_deploy.errors import ConfigError

if TYPE_CHECKING:
    from moh_deploy.frontend.prove.eager import EagerModel
    from moh_deploy.system.progress import SilentProgress
    from moh_deploy.validate.compare.generate_report import GenerateReport

# Characters that move the cursor, change colours and the like: all but a new line and a tab.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10}, "\N{REPLACEMENT CHARACTER}")


@click.command("generate")
@options.takes(
    options.PACKAGE,
    options.many("--prompt", "TEXT", "What to go on with.", to="prompts"),
    options.many(
        "--tokens",
        "N,N,...",
        "A prompt as numbers of tokens: needs no tokenizer.",
        callback=values.read_all(values.parse_tokens),
    ),
    options.positive("--max-tokens", "The most tokens that are added to each prompt.", default=64),
    click.option(
        "--temperature",
        metavar="T",
        type=float,
        default=0.0,
        show_default=True,
        help="Draw tokens, from logits divided by this. 0 takes the likeliest.",
    ),
    click.option(
        "--top-p",
        metavar="P",
        type=float,
        default=1.0,
        show_default=True,
        help="Draw among the likeliest tokens that together have this probability.",
    ),
    click.option(
        "--seed", metavar="N", type=int, default=0, show_default=True, help="Of the draws."
    ),
    options.path(
        "--against",
        "DIR|FILE",
        "Compare tokens, the likeliest ones, with another package or with the original: its model"
        " directory or checkpoint. Exit 1 where one differs by more than rounding explains.",
    ),
    options.RUNTIME,
    options.KERNELS,
    options.MODEL_OPTIONS,
    options.JSON,
)
def command(against: Path | None, as_json: bool, **given: object) -> None:
    """Go on with prompts by the package DIR, which `export --task text-generation` made, and show
    the text as it comes.

    Options that say how the original of --against is loaded are those of `moh-deploy export`."""
    from moh_deploy.api.generate import generate

    loading = taken_model_options(given)
    prompts = given["prompts"] or given["tokens"]
    shown = None if as_json else _Shown(sys.stdout, len(prompts))  # type: ignore[arg-type]

    def job(progress: SilentProgress) -> GenerateReport:
        other = other_model(against, loading, progress)
        try:
            return generate(
                against=other,
                on_text=shown,
                progress=progress,
                **given,  # type: ignore[arg-type]
            )
        finally:  # of what is interrupted, too
            if shown is not None:
                shown.end()

    print_answer(job, as_json=as_json)


class _Shown:
    """Writes text as it comes; of several prompts, one after the other."""

    def __init__(self, stdout: TextIO, prompts: int) -> None:
        # Progress and the model's own prints go to stderr meanwhile; text is the answer.
        self._stdout, self._kept = stdout, [""] * prompts
        # A model may say anything: a terminal is not to obey it.
        self._replaced = _CONTROLS if stdout.isatty() else {}

    def __call__(self, row: int, text: str) -> None:
        text = text.translate(self._replaced)
        self._kept[row] += text
        if row == 0:
            with writing_stdout(self._stdout):
                self._stdout.write(text)
                self._stdout.flush()

    def end(self) -> None:
        """Write what other prompts got, and end the line."""
        if any(self._kept):
            rest = "".join(f"\n\n[{n}]{text}" for n, text in enumerate(self._kept[1:], start=2))
            with writing_stdout(self._stdout):
                self._stdout.write(f"{rest}\n\n")


def other_model(
    against: Path | None, loading: dict[str, object], progress: SilentProgress
) -> Path | EagerModel | None:
    """Load an original; a package is opened by `generate` itself."""
    is_package = against is None or (against / "manifest.json").is_file()
    names = given_model_options(loading)
    if is_package and names:
        raise ConfigError(
            f"{', '.join(names)} says how the original of --against is loaded, but --against names"
            f" {'none' if against is None else 'a package'}.",
            hint="Leave it out, or name a checkpoint or model directory.",
        )
    if is_package or against is None:
        return against
    with progress.step("loading the original model"):
        return open_original(against, loading)
