"""`moh-deploy run`, `generate`, `inspect` and `doctor`: commands that run a package or show one."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, TypedDict, Unpack

from moh_deploy.cli import options, values
from moh_deploy.cli.command import Default, Under, command
from moh_deploy.cli.failure import writing_stdout
from moh_deploy.cli.original import package_or_original
from moh_deploy.cli.output import print_answer, write_files

if TYPE_CHECKING:
    from moh_deploy.system.progress import SilentProgress
    from moh_deploy.validate.compare.generate_report import GenerateReport

# Characters that move the cursor, change colours and the like: all but a new line and a tab.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10}, "\N{REPLACEMENT CHARACTER}")


class ToRun(TypedDict):
    package_dir: options.PackagePath
    inputs: Annotated[
        Path, "FILE.npz", "Inputs, named as in the model; or all of other names, in its order."
    ]
    outputs: Annotated[
        Path,
        "FILE.npz",
        "Where to write the outputs, named as in the model; an earlier npz file is replaced.",
    ]
    runtime: options.RuntimeName
    kernels: options.KernelChoice


@command("run", page="quickstart")
def run_command(as_json: options.Json, **given: Unpack[ToRun]) -> None:
    """Run the package DIR once, or the engine DIR with its TensorRT.

    Example:
        moh-deploy run build/model --inputs val.npz --outputs out.npz
    """
    from moh_deploy.api.run import run

    print_answer(lambda progress: run(**given, progress=progress), as_json=as_json)


class ToGenerate(TypedDict):
    package_dir: options.PackagePath
    prompts: Annotated[tuple[str, ...], "--prompt TEXT", "What to go on with."]
    tokens: Annotated[
        Sequence[Sequence[int]],
        "N,N,...",
        "A prompt as numbers of tokens: needs no tokenizer.",
        values.read_all(values.parse_tokens),
    ]
    max_tokens: Annotated[
        int, "N", "The most tokens that are added to each prompt.", options.POSITIVE, Default(64)
    ]
    temperature: Annotated[
        float,
        "T",
        "Draw tokens, from logits divided by this. 0 takes the likeliest.",
        Default(0.0),
        Under("Choice of tokens"),
    ]
    top_p: Annotated[
        float,
        "P",
        "Draw among the likeliest tokens that together have this probability.",
        Default(1.0),
        Under("Choice of tokens"),
    ]
    seed: Annotated[int, "N", "Of the draws.", Default(0), Under("Choice of tokens")]
    runtime: options.RuntimeName
    kernels: options.KernelChoice


@command("generate", page="huggingface")
def generate_command(
    against: Annotated[
        Path | None,
        "DIR|FILE",
        "Compare tokens, the likeliest ones, with another package or with the original: its model"
        " directory or checkpoint. Exit 1 where one differs by more than rounding explains.",
    ],
    loading: options.OriginalLoading,
    as_json: options.Json,
    **given: Unpack[ToGenerate],
) -> None:
    """Go on with prompts by the package DIR, which `export --task text-generation` made, and show
    the text as it comes.

    Example:
        moh-deploy generate build/llm --prompt 'Once upon a time'
    """
    from moh_deploy.api.generate import generate

    prompts = len(given["prompts"] or given["tokens"])
    shown = None if as_json else _Shown(sys.stdout, prompts)

    def job(progress: "SilentProgress") -> "GenerateReport":
        other = package_or_original(against, loading, progress)
        try:
            return generate(against=other, on_text=shown, progress=progress, **given)
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


@command("inspect", page="package-format")
def inspect_command(
    package_dir: options.PackagePath,
    kernels: options.KernelChoice,
    files: options.ReportPages,
    verbose: options.Verbose,
    as_json: options.Json,
) -> None:
    """Show the MoH layers of the package or engine DIR, and what runs them; of a package, how much
    work they can skip.

    Example:
        moh-deploy inspect build/model --html model.html
    """
    from moh_deploy.api.inspect import inspect

    print_answer(
        lambda progress: write_files(
            files,
            str(package_dir),
            lambda: inspect(package_dir, kernels=kernels, progress=progress),
        ),
        as_json=as_json,
        verbose=verbose,
    )


@command("doctor", page="doctor")
def doctor_command(
    artefact: options.ArtefactDir,
    plugin: Annotated[
        Path | None, "FILE", "The plugin library for TensorRT, if not the installation's."
    ],
    as_json: options.Json,
) -> None:
    """Say what is installed, what can be built and run on this machine, and what closes each gap:
    exit 0 if models can be exported and packages run here, 1 if not. Other gaps are information.
    With a package or an engine DIR, it is loaded, too, and has to run.

    Example:
        moh-deploy doctor
    """
    from moh_deploy.api.doctor import doctor

    print_answer(
        lambda progress: doctor(artefact, plugin=plugin, progress=progress), as_json=as_json
    )
