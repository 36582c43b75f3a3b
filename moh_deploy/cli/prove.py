"""`moh-deploy verify`, `probe` and `bisect`: commands that prove a package, or find its fault."""

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, Unpack

from moh_deploy.add_ons import AddedVerifier, entry_points
from moh_deploy.cli import options, values
from moh_deploy.cli.command import Default, Under, command
from moh_deploy.cli.original import open_original, original_of, refuse_settings
from moh_deploy.cli.output import is_quiet, print_answer, write_files
from moh_deploy.errors import BackendError, MoHDeployError, ValidationError

if TYPE_CHECKING:
    from moh_deploy.system.isolate import Outcome
    from moh_deploy.system.progress import Progress
    from moh_deploy.validate.edge_cases.report import ProbeReport
    from moh_deploy.validate.reference.reference import Reference


class ToVerify(TypedDict):
    package_dir: options.PackagePath
    inputs: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "Compare on these inputs instead of the recorded ones. Members named like outputs are the"
        " expected outputs; without them the reference is the package's own function bodies, run"
        " with optimisations off. Of a directory all *.npz are taken.",
    ]
    valid_tokens: Annotated[
        str | None,
        "NAME",
        "The input, or member of the files, that is 1 for valid tokens and 0 for padding,"
        " [batch, tokens], or that is added to scores, 0 for valid tokens; `not NAME`: 1 for"
        " padding. Padding is not compared. `all` compares all tokens."
        "  [default: what the package names]",
        Under("What is compared"),
    ]
    vectors: Annotated[
        int | None,
        "N",
        "Compare with the first N recorded runs only; the first is at the example's sizes.",
        Under("What is compared"),
    ]
    package: Annotated[
        Path | None,
        "DIR",
        "The package that an engine was built from, if an engine is verified.",
        Under("What is compared"),
    ]
    staged: Annotated[bool, ""]  # of a package that is still being written, asked by its writer
    policy: options.PolicyFile
    baseline_file: options.BaselineFile
    update_baseline: options.UpdateBaseline
    labels: options.LabelFile
    metric: Annotated[
        tuple[str, ...],
        "NAME",
        "top-1, top-5, perplexity, or MODULE:FUNCTION, which takes outputs by name and labels"
        " and returns a score for each sample; --code-dir says where it is. Without: top-1 for [N],"
        " perplexity for [N, S].",
        values.METRIC_NAME,
        Under("Accuracy"),
    ]
    better: Annotated[
        Literal["higher", "lower"] | None,
        "Which scores of MODULE:FUNCTION are better.",
        Under("Accuracy"),
    ]
    within: options.Within
    runtime: options.RuntimeName
    kernels: options.KernelChoice


@command("verify", page="verify")
def verify_command(
    against: Annotated[
        tuple[str, ...],
        "WHAT",
        "What to compare with instead: `functions` (its function bodies, optimisations off),"
        " `kernels`, `recorded`, another package or engine, an ONNX model, or the checkpoint (.pt,"
        " .safetensors, .pt2), which PyTorch runs.",
        values.name_or_path("functions", "kernels", "recorded"),
    ],
    files: options.ReportFiles,
    scoring: options.Scoring,
    loading: options.OriginalLoading,
    verbose: options.Verbose,
    as_json: options.Json,
    **given: Unpack[ToVerify],
) -> None:
    """Compare the package or engine DIR with what the original model computed, or with what
    --against names: exit 0 if equal, 1 if not. Packages in int8 or int4 are within tolerance, which
    says nothing of quality: --labels and --within do. Of a bundle for genai, onnxruntime-genai runs
    it, and its greedy tokens are compared.

    Example:
        moh-deploy verify build/model --inputs val.npz --labels labels.npy
    """
    package_dir = given["package_dir"]
    for point in entry_points("verifiers").values():
        added = point.load(AddedVerifier)
        if os.path.isfile(package_dir / added.file):
            try:
                verifier = import_module(added.module)
            except Exception as error:  # The code of others may raise anything.
                raise point.broken(error) from error
            if verifier.is_one(package_dir):
                verifier.verify_bundle(package_dir, against, loading, as_json)
                return
    from moh_deploy.api.verify import verify

    shared = ("code_dirs",) if given["metric"] else ()  # the code of a metric is there, too
    print_answer(
        lambda progress: write_files(
            files,
            str(package_dir),
            lambda: verify(
                against=named_references(against, loading, shared),
                code_dirs=loading["code_dirs"],
                progress=progress,
                **scoring,
                **given,
            ),
        ),
        as_json=as_json,
        verbose=verbose,
        package=str(package_dir),
    )


def named_references(
    against: Sequence[str], loading: options.LoadingSettings, shared: Sequence[str] = ()
) -> "list[str | Reference]":
    """Return checkpoints, which need PyTorch, as references that load them, and all else as it is.

    Args:
        shared: Options of `loading` that say something else, too.

    Raises:
        ConfigError: There are such options, and no checkpoint.
    """
    from moh_deploy.validate.reference.references import WORDS

    # A path that is not there may be meant as a checkpoint: what reads it says that it is missing.
    known = [name in WORDS or os.path.exists(name) for name in against]
    if all(known) and not any(map(_is_checkpoint, against)):
        own = {name: value for name, value in loading.items() if name not in shared}
        but = "a checkpoint is loaded, but --against names none"
        refuse_settings(own, but, "Add --against CHECKPOINT, or leave it out.")
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


class ToProbe(TypedDict):
    package_dir: options.PackagePath
    inputs: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "Search these inputs for the tokens whose choice of heads is least clear.",
    ]
    update_corpus: Annotated[
        bool,
        "Keep what was found in the regression corpus of the package, which `verify` runs too.",
    ]
    valid_tokens: Annotated[
        str | None,
        "NAME",
        "The input that is 1 for valid tokens and 0 for padding, [batch, tokens]; `not NAME`: 1 for"
        " padding. It is for the case of padding only. Padding is not compared in other cases, and"
        " not searched. `all` takes none."
        "  [default: what the package names]",
        Under("What is compared"),
    ]
    longest: Annotated[
        Mapping[str, int],
        "DIM=N",
        "What counts as longest, in place of what the trace is good for or what fits into memory.",
        values.read_all(values.parse_longest),
    ]
    policy: options.PolicyFile
    runtime: options.RuntimeName
    kernels: options.KernelChoice


@command("probe", page="probe")
def probe_command(
    files: options.ReportFiles,
    checkpoint: Annotated[
        Path | None,
        "FILE",
        "The original model: it, and not the function bodies, records what is found in the inputs.",
    ],
    loading: options.OriginalLoading,
    as_json: options.Json,
    **given: Unpack[ToProbe],
) -> None:
    """Run the package DIR on edge cases (ties, saturated and NaN logits, no token, padding only)
    and on its regression corpus: exit 1 if one fails.

    Example:
        moh-deploy probe build/model --inputs val.npz
    """
    print_answer(
        lambda _: write_files(
            files,
            str(given["package_dir"]),
            lambda: isolated_probe(given, checkpoint, loading, quiet=is_quiet(as_json=as_json)),
        ),
        as_json=as_json,
        package=str(given["package_dir"]),
    )


def isolated_probe(
    given: ToProbe, checkpoint: Path | None, loading: options.LoadingSettings, *, quiet: bool
) -> "ProbeReport":
    """Probe in a process of its own: edge cases are where kernels end the process.

    Args:
        checkpoint: The original model, that records what is found.
        quiet: Show no progress.

    Raises:
        ValidationError: A case ended the process; the sentence names it.
        MoHDeployError: As `probe` does.
    """
    from moh_deploy.system.isolate import isolated

    found = isolated(_probed, (given, checkpoint, loading), show_steps=not quiet)
    if found.answer is None and found.error is None:
        raise _killed(given["package_dir"], found)
    return found.required("the process that probes")


def _probed(
    task: tuple[ToProbe, Path | None, options.LoadingSettings], *, progress: "Progress"
) -> "ProbeReport":
    from moh_deploy.api.probe import probe

    given, checkpoint, loading = task
    original = original_of(checkpoint, loading, progress)
    return probe(original=original, progress=progress, **given)


def _killed(package_dir: Path, found: "Outcome[ProbeReport]") -> MoHDeployError:
    sentence = (
        f"the process that probes {package_dir} ended with {found.how()} in case"
        f" '{found.step or 'starting'}'."
    )
    # A signal is what a kernel that reads beyond its arrays ends with: that is a probe's answer.
    # A status is a bug of ours, or Python's own end.
    if found.return_code is not None and found.return_code >= 0:
        return BackendError(sentence, hint="What it said of it is above.")
    return ValidationError(
        sentence,
        hint="Where it does not with --kernels off, a kernel is what ends it. SIGKILL mostly comes"
        " from a system short of memory: --longest DIM=N chooses a smaller case.",
    )


class ToBisect(TypedDict):
    package_dir: options.PackagePath
    reference: Annotated[
        Path | None,
        "DIR",
        "A float32 package of the same model: the one that this one was lowered from, or one"
        " that is right. It names the node and what is different about it, and gives float32"
        " weights.",
    ]
    output: Annotated[
        Path | None,
        "--output -o DIR",
        "Write the package again with the nodes in float32 that need it.",
    ]
    to: Annotated[
        Literal["float16", "bfloat16", "int8"] | None,
        "Lower a float32 package first, as `precision` does, which writes none that is not right.",
    ]
    target: Annotated[
        float | None,
        "SHARE",
        "How far outputs may be off, as a share of their largest value, such as 0.001."
        " Default: what `verify` allows.",
        Under("The search"),
    ]
    max_runs: Annotated[
        int,
        "N",
        "How many packages may be made and run to find the nodes.",
        Default(100),
        Under("The search"),
    ]
    inputs: Annotated[
        tuple[Path, ...],
        "FILE.npz|DIR",
        "Run these inputs besides the recorded ones; expected is what the package computes in"
        " float32, or what the reference does.",
        Under("The search"),
    ]
    vectors: Annotated[
        int | None,
        "N",
        "Use the first N recorded runs only; the first is at the example's sizes.",
        Under("The search"),
    ]
    policy: options.PolicyFile
    kernels: options.KernelChoice


@command("bisect", page="bisect")
def bisect_command(
    files: options.ReportPages, as_json: options.Json, **given: Unpack[ToBisect]
) -> None:
    """Find the first layer and node at which the package DIR parts from the original model, and
    which nodes of a package in half precision have to be in float32: exit 0 if nothing diverges or
    the repaired package was written, 1 if not.

    Example:
        moh-deploy bisect build/model --to float16 -o build/mixed
    """
    from moh_deploy.api.bisect import bisect

    print_answer(
        lambda progress: write_files(
            files, str(given["package_dir"]), lambda: bisect(**given, progress=progress)
        ),
        as_json=as_json,
    )
