"""What `moh-deploy export` costs against a plain `torch.onnx.export` of the same model.

Every run is a fresh process; the two sides take turns, so that a machine that slows down slows both
of them. Both load the same state dict and use the same inputs and dynamic dimensions. There is no
gate: the exit code is 1 only if a side fails to export.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from process_cost import CommandFailed, Cost, load_average, machine, measure
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PACKAGES = ("moh-deploy", "torch", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Subject:
    """A model to export, in the words of `moh-deploy export`.

    Attributes:
        factory: `MODULE:CALLABLE`, called without arguments.
        inputs: `--input` specifications.
    """

    factory: str
    code_dirs: tuple[str, ...]
    inputs: tuple[str, ...]

    def options(self) -> list[str]:
        """Return the options of both sides, up to the checkpoint and the output."""
        return [
            *("--factory", self.factory),
            *(word for folder in self.code_dirs for word in ("--code-dir", folder)),
            *(word for spec in self.inputs for word in ("--input", spec)),
        ]


_LATENTS = (
    "latents:[batch=2,4,32,32]:float32",
    "timesteps:[batch=2]:int64",
    "labels:[batch=2]:int64",
)
_PROMPT = ("token_ids:[batch=2,seq=64]:int64", "mask:[batch=2,seq=64]:bool")

SUBJECTS = {
    "dit-s": Subject("models:dit_s", (str(HERE),), _LATENTS),
    "vit-s": Subject("models:vit_s", (str(HERE),), ("images:[batch=2,3,224,224]:float32",)),
    "llama-small": Subject("models:llama_small", (str(HERE),), _PROMPT),
}


@dataclass(frozen=True)
class Comparison:
    """The runs of both sides, in the order they were made: the first pair, the second, ..."""

    ours: tuple[Cost, ...]
    plain: tuple[Cost, ...]

    def figures(self, of: Callable[[Cost], float]) -> Figures:
        """Compare one of the costs."""
        ours, plain = [of(cost) for cost in self.ours], [of(cost) for cost in self.plain]
        return Figures(
            ours=median(ours),
            plain=median(plain),
            pair_ratios=tuple(_ratio(a, b) for a, b in zip(ours, plain, strict=True)),
        )


@dataclass(frozen=True)
class Figures:
    """One cost on both sides.

    Attributes:
        ours, plain: Medians.
        pair_ratios: Ours over plain, of each pair of neighbouring runs; None where plain is 0.
    """

    ours: float
    plain: float
    pair_ratios: tuple[float | None, ...]

    @property
    def ratio(self) -> float | None:
        """Return the ratio of the medians."""
        return _ratio(self.ours, self.plain)

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "ratio": self.ratio}


# What is compared: name, unit, goal for the ratio (None: for information), and where it is found.
COSTS: tuple[tuple[str, str, float | None, Callable[[Cost], float]], ...] = (
    ("wall", "s", 1.3, lambda cost: cost.wall_s),
    ("cpu", "s", None, lambda cost: cost.cpu_s),
    ("peak", "MiB", 1.2, lambda cost: cost.peak_mib),
    ("all processes", "MiB", None, lambda cost: cost.sum_mib),
    ("largest child", "MiB", None, lambda cost: cost.largest_child_mib),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    subject = _subject(options)
    start_load = load_average()
    try:
        comparison = compare(subject, runs=options.runs, warm_ups=options.warm_ups)
    except CommandFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    about = {
        "model": options.model or options.factory,
        "inputs": ", ".join(subject.inputs),
        "runs": str(options.runs),
        **machine(),
        "load at start": start_load,
        "load at end": load_average(),
        **{name: version(name) for name in PACKAGES},
    }
    if options.json:
        print(json.dumps(to_json(comparison, about), indent=2))
    else:
        show(comparison, about)
    return 0


def compare(subject: Subject, *, runs: int, warm_ups: int) -> Comparison:
    """Run both sides in turn.

    Args:
        runs: Measured pairs.
        warm_ups: Pairs before them that are not counted.

    Raises:
        CommandFailed: A side cannot export the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "weights.pt"
        writer = [sys.executable, str(HERE / "write_checkpoint.py")]
        measure([*writer, subject.factory, str(checkpoint), *subject.code_dirs])
        pairs = [_pair(subject, checkpoint) for _ in range(warm_ups + runs)][warm_ups:]
    return Comparison(tuple(ours for ours, _ in pairs), tuple(plain for _, plain in pairs))


def _pair(subject: Subject, checkpoint: Path) -> tuple[Cost, Cost]:
    ours = _export([sys.executable, "-m", "moh_deploy", "export"], subject, checkpoint)
    plain = _export([sys.executable, str(HERE / "plain_export.py")], subject, checkpoint)
    return ours, plain


def _export(side: list[str], subject: Subject, checkpoint: Path) -> Cost:
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
        output = str(Path(folder) / "exported")
        return measure([*side, str(checkpoint), "--output", output, *subject.options(), "--json"])


def to_json(comparison: Comparison, about: dict[str, str]) -> dict[str, object]:
    """Return the figures and every single run in plain JSON types."""
    costs = {
        name: {"unit": unit, "goal": goal, **comparison.figures(of).to_json()}
        for name, unit, goal, of in COSTS
    }
    return {
        "about": about,
        "costs": costs,
        "runs": {
            "moh-deploy": [asdict(cost) for cost in comparison.ours],
            "torch.onnx.export": [asdict(cost) for cost in comparison.plain],
        },
    }


def show(comparison: Comparison, about: dict[str, str]) -> None:
    """Print the figures as a table, under what they were measured on."""
    columns = ("", "moh-deploy export", "torch.onnx.export", "ratio", "goal", "ratio of each pair")
    table = Table(*columns, title="Cost of an export: medians", title_justify="left")
    for name, unit, goal, of in COSTS:
        figures = comparison.figures(of)
        table.add_row(
            f"{name}, {unit}",
            f"{figures.ours:.4g}",
            f"{figures.plain:.4g}",
            _times(figures.ratio),
            "" if goal is None else f"<= {goal}",
            " ".join(map(_times, figures.pair_ratios)),
        )
    console = Console() if sys.stdout.isatty() else Console(width=140)
    for name, value in about.items():
        console.print(f"{name:14} {value}", markup=False, highlight=False)
    console.print(table)


def _ratio(ours: float, plain: float) -> float | None:
    return ours / plain if plain else None


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _subject(options: argparse.Namespace) -> Subject:
    if options.model is not None:
        return SUBJECTS[options.model]
    return Subject(options.factory, tuple(options.code_dir), tuple(options.input))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", choices=SUBJECTS, help="a model of benchmarks/models.py")
    which.add_argument("--factory", metavar="MODULE:CALLABLE", help="a model of your own")
    parser.add_argument("--code-dir", metavar="DIR", action="append", default=[])
    parser.add_argument("--input", metavar="SPEC", action="append", default=[])
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="measured pairs")
    parser.add_argument("--warm-ups", type=int, default=1, metavar="N", help="pairs before them")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
