"""`moh-deploy probe`."""

from __future__ import annotations

from pathlib import Path

import click

from moh_deploy.cli import options, values
from moh_deploy.cli.original import taken_model_options
from moh_deploy.cli.output import print_answer


@click.command("probe")
@options.takes(
    options.PACKAGE,
    options.inputs("Search these inputs for the tokens whose choice of heads is least clear."),
    options.flag(
        "--update-corpus",
        "Keep what was found in the regression corpus of the package, which `verify` runs too.",
    ),
    options.valid_tokens_input(
        "The input that is 1 for valid tokens and 0 for padding, [batch, tokens]; `not NAME`: 1 for"
        " padding. It is for the case of padding only. Padding is not compared in other cases, and"
        " not searched. `all` takes none."
        "  [default: what the package names]"
    ),
    options.many(
        "--longest",
        "DIM=N",
        "What counts as longest, in place of what the trace is good for or what fits into memory.",
        callback=values.read_all(values.parse_longest),
    ),
    options.POLICY,
    options.JUNIT,
    options.checkpoint(
        "The original model: it, and not the function bodies, records what is found in the inputs."
        " Options that say how it is loaded are those of `moh-deploy export`."
    ),
    options.RUNTIME,
    options.KERNELS,
    options.MODEL_OPTIONS,
    options.JSON,
)
def command(package_dir: Path, junit: Path | None, as_json: bool, **given: object) -> None:
    """Run the package DIR on edge cases (ties, saturated and NaN logits, no token, padding only)
    and on its regression corpus: exit 1 if one fails."""
    from moh_deploy.cli.isolated_probe import ProbeTask, isolated_probe
    from moh_deploy.cli.output import ReportFiles

    loading = taken_model_options(given)
    task = ProbeTask(package_dir, loading=loading, quiet=as_json, **given)  # type: ignore[arg-type]
    files = ReportFiles("probe", str(package_dir), {"junit": junit})
    print_answer(
        lambda _: files.write_on(lambda: isolated_probe(task)),
        as_json=as_json,
        package=str(package_dir),
    )
