"""`moh-deploy verify`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moh_deploy.cli import genai, options, values
from moh_deploy.cli.original import given_model_options, open_original, taken_model_options
from moh_deploy.cli.output import FileFormat, ReportFiles, print_answer
from moh_deploy.errors import ConfigError

if TYPE_CHECKING:
    from moh_deploy.validate.reference.reference import Reference


# What `--against` names: checkpoints are told from all else here, since they need PyTorch.


def named_references(
    against: Sequence[str], loading: Mapping[str, object], shared: Sequence[str] = ()
) -> list[str | Reference]:
    """Return checkpoints as references that load them, and all else as it is.

    Args:
        loading: The options that say how a checkpoint is loaded, by field of `ModelOptions`.
        shared: Those of them that say something else, too.

    Raises:
        ConfigError: There are such options, and no checkpoint.
    """
    given = given_model_options({k: v for k, v in loading.items() if k not in shared})
    if given and not any(map(_is_checkpoint, against)):
        raise ConfigError(
            f"{', '.join(given)} says how a checkpoint is loaded, but --against names none.",
            hint="Add --against CHECKPOINT, or leave it out.",
        )
    return [
        open_original(Path(name), loading) if _is_checkpoint(name) else name for name in against
    ]


def _is_checkpoint(named: str) -> bool:
    from moh_deploy.validate.reference.references import WORDS

    path = Path(named)
    if named in WORDS:
        return False
    # A model directory; a package has a manifest, and no config.
    has = {name: os.path.isfile(path / name) for name in ("config.json", "manifest.json")}
    is_directory = has["config.json"] and not has["manifest.json"]
    return is_directory or (os.path.isfile(path) and path.suffix != ".onnx")


@click.command("verify")
@options.takes(
    options.PACKAGE,
    options.inputs(
        "Compare on these inputs instead of the recorded ones. Members named like outputs are the"
        " expected outputs; without them the reference is the package's own function bodies, run"
        " with optimisations off. Of a directory all *.npz are taken."
    ),
    options.many(
        "--against",
        "WHAT",
        "What to compare with instead: `functions` (its function bodies, optimisations off),"
        " `kernels`, `recorded`, another package or engine, an ONNX model, or the checkpoint (.pt,"
        " .safetensors, .pt2), which PyTorch runs.",
        type=values.NAME_OR_PATH,
    ),
    options.valid_tokens_input(
        "The input, or member of the files, that is 1 for valid tokens and 0 for padding,"
        " [batch, tokens], or that is added to scores, 0 for valid tokens; `not NAME`: 1 for"
        " padding. Padding is not compared. `all` compares all tokens."
        "  [default: what the package names]"
    ),
    options.vectors(
        "Compare with the first N recorded runs only; the first is at the example's sizes."
    ),
    options.path(
        "--package", "DIR", "The package that an engine was built from, if an engine is verified."
    ),
    click.option("--staged", is_flag=True, hidden=True),  # for whoever writes the package
    options.POLICY,
    options.REPORT_FILES,
    options.BASELINE_FILE,
    options.LABEL_FILE,
    options.many(
        "--metric",
        "NAME",
        "top-1, top-5, perplexity, or MODULE:FUNCTION, which takes outputs by name and labels"
        " and returns a score for each sample; --code-dir says where it is. Without: top-1 for [N],"
        " perplexity for [N, S].",
    ),
    click.option(
        "--better",
        type=click.Choice(["higher", "lower"]),
        help="Which scores of MODULE:FUNCTION are better.",
    ),
    options.WITHIN,
    options.SCORING_OPTIONS,
    options.RUNTIME,
    options.KERNELS,
    options.MODEL_OPTIONS,
    options.JSON,
)
@click.pass_context
def command(
    ctx: click.Context,
    /,
    package_dir: Path,
    against: tuple[str, ...],
    junit: Path | None,
    markdown: Path | None,
    html: Path | None,
    as_json: bool,
    **given: object,
) -> None:
    """Compare the package or engine DIR with what the original model computed, or with what
    --against names: exit 0 if equal, 1 if not. Packages in int8 or int4 are within tolerance, which
    says nothing of quality: --labels and --within do. Of a bundle for genai, onnxruntime-genai runs
    it, and its greedy tokens are compared.

    Options that say how a checkpoint is loaded are those of `moh-deploy export`."""
    loading = taken_model_options(given)
    if genai.names_genai_bundle(package_dir):
        genai.verify_by_genai(ctx, package_dir, against, loading, as_json)
        return
    from moh_deploy.api.verify import verify

    shared = ("code_dirs",) if given["metric"] else ()  # the code of a metric is there, too
    paths: dict[FileFormat, Path | None] = {"junit": junit, "markdown": markdown, "html": html}
    files = ReportFiles("verify", str(package_dir), paths, ctx.obj or ())
    print_answer(
        lambda progress: files.write_on(
            lambda: verify(
                package_dir,
                against=named_references(against, loading, shared),
                code_dirs=loading["code_dirs"],  # type: ignore[arg-type]
                progress=progress,
                **given,  # type: ignore[arg-type]
            )
        ),
        as_json=as_json,
        package=str(package_dir),
    )
