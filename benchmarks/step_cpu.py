"""How long a decoder's step takes behind caches of several lengths, beside what others take.

    python benchmarks/step_cpu.py --keep build/step
    python benchmarks/step_cpu.py --keep build/step --past 2048 --threads 1 --weights int4

4 layers of width 2048, 16 heads on 4 of keys, one sequence. Ours keeps its caches in place; who the
others are, step_candidates.py says. All take turns in one process, and what each computes is
compared with PyTorch on the same caches before. Peers that are not installed are left out.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median
from subprocess import CalledProcessError

import numpy as np
from interleaving import figure, interleaved_ms
from op_timing import WrongOutput, check_error
from printing import environment, print_results, versions
from process_cost import load_average
from rich.table import Table
from run_options import positive
from step_candidates import (
    Candidate,
    Genai,
    GroupQuery,
    Openvino,
    Ours,
    Plain,
    expected_logits,
    random_caches,
)
from step_models import Sizes, StepModels, all_open

from moh_deploy.errors import MoHDeployError
from moh_deploy.system.npz import Array

# Largest difference of a logit in float32, as a share of the largest.
EXACT = 1e-4


@dataclass(frozen=True)
class Row:
    """What one candidate took.

    Attributes:
        ms: The figure: median of CPU time on one thread, minimum of wall time on several.
        median_ms: The median of the same clock.
        error: Largest difference to PyTorch's logits, as a share of the largest of these; None
            where other numbers were in the caches.
    """

    name: str
    past: int
    threads: int
    ms: float
    median_ms: float
    error: float | None


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    start_load = load_average()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="moh-deploy-") as scratch:
        models = StepModels(options.keep or Path(scratch), options.sizes, options.weights)
        try:
            expected = _expected(models, options)
            for threads in options.threads:
                for group in options.groups:
                    opened = _opened(models, options, group, threads)
                    rows += _measured(opened, expected, options, threads)
                    del opened  # before the next are loaded
        except (MoHDeployError, WrongOutput) as failure:
            print(failure, file=sys.stderr)
            return 1
    packages = ("moh-deploy", "onnxruntime", "onnxruntime-genai", "openvino", "torch")
    about = {**environment(start_load), **versions(packages), "weights": options.weights}
    tables = [_table(rows, threads) for threads in options.threads]
    print_results(about, [asdict(row) for row in rows], tables, as_json=options.json, width=120)
    return 0


def _expected(
    models: StepModels, options: argparse.Namespace
) -> dict[tuple[int | None, int], Array]:
    """Return PyTorch's logits for each number of open heads (None: no routers) and each length."""
    sizes = models.sizes
    forms = {heads: models.module(heads) for heads in (sizes.heads, *options.open)}
    found = {
        (heads, past): expected_logits(model, sizes, random_caches(sizes, past))
        for heads, model in forms.items()
        for past in options.past
    }
    dense = all_open(models.module())
    return found | {
        (None, past): expected_logits(dense, sizes, random_caches(sizes, past))
        for past in options.past
    }


def _opened(
    models: StepModels, options: argparse.Namespace, group: str, threads: int
) -> list[Candidate]:
    """Load the candidates of a group, those that can be."""
    sizes = models.sizes
    makers: list[Callable[[], Candidate]]
    if group == "sessions":
        makers = [
            partial(Ours, models.package(heads), heads, sizes, threads) for heads in options.open
        ]
        makers.append(lambda: GroupQuery(models.dense(), sizes, threads))
        if models.weights == "float32":
            makers.append(lambda: Plain(models.plain(), sizes, threads))
        if models.weights == "int8":
            name = "GroupQueryAttention, dynamic int8"
            makers.append(lambda: GroupQuery(models.dynamic(), sizes, threads, name))
        makers.append(lambda: Openvino(models, threads))
    else:
        makers = [
            partial(
                Genai, f"ours, {heads} of {sizes.heads} open", models.bundle(heads), sizes, threads
            )
            for heads in options.open
        ]
        makers.append(lambda: Genai("dense form", models.dense(), sizes, threads))
    return [maker for maker in map(_if_installed, makers) if maker is not None]


def _if_installed(make: Callable[[], Candidate]) -> Candidate | None:
    try:
        return make()
    except (ImportError, CalledProcessError) as missing:
        print(f"left out: {missing}", file=sys.stderr)
        return None


def _measured(
    candidates: Sequence[Candidate],
    expected: Mapping[tuple[int | None, int], Array],
    options: argparse.Namespace,
    threads: int,
) -> Iterator[Row]:
    """Measure candidates behind each length in turn, and check what they compute."""
    room = 2 * options.repeats + 16
    for past in options.past:
        caches = random_caches(options.sizes, past)
        errors: list[float | None] = []
        for candidate in candidates:
            candidate.fill(caches, room)
            errors.append(_error(candidate, expected[candidate.open_heads, past], options.weights))
            candidate.fill(caches, room)
        steps = [candidate.step for candidate in candidates]
        runs = interleaved_ms(steps, threads=threads, rounds=options.repeats)
        for candidate, ms, error in zip(candidates, runs, errors, strict=True):
            print(f"{candidate.name}, {past}, {threads}: {median(ms):.2f} ms", file=sys.stderr)
            yield Row(candidate.name, past, threads, figure(ms, threads), median(ms), error)


def _error(candidate: Candidate, expected: Array, weights: str) -> float | None:
    """Return how far a candidate's logits are from PyTorch's.

    Raises:
        WrongOutput: Further than sums in another order explain, in float32.
    """
    logits = candidate.logits()
    if logits is None:
        return None
    error = float(np.abs(logits - expected).max() / np.abs(expected).max())
    return check_error(candidate.name, error, EXACT) if weights == "float32" else error


def _table(rows: Sequence[Row], threads: int) -> Table:
    rows = [row for row in rows if row.threads == threads]
    lengths = list(dict.fromkeys(row.past for row in rows))
    clock = "CPU time, median" if threads == 1 else "wall time, minimum (median)"
    title = f"a step, {threads} thread{'s' * (threads > 1)}, ms of {clock}"
    table = Table("", *(f"behind {length}" for length in lengths), "error", title=title)
    for name in dict.fromkeys(row.name for row in rows):
        own = {row.past: row for row in rows if row.name == name}
        cells = [
            f"{own[past].ms:.1f}" + (f" ({own[past].median_ms:.1f})" if threads > 1 else "")
            for past in lengths
        ]
        errors = [item.error for item in own.values() if item.error is not None]
        table.add_row(name, *cells, f"{max(errors):.0e}" if errors else "")
    return table


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--past", nargs="+", type=positive, default=[512, 2048, 8192], metavar="N")
    add("--threads", nargs="+", type=positive, default=[1, 2], metavar="N")
    add("--open", nargs="+", type=positive, default=[16, 8], metavar="N", help="heads of ours")
    add("--weights", choices=["float32", "int8", "int4"], default="float32")
    add("--groups", nargs="+", choices=["sessions", "genai"], default=["sessions", "genai"])
    add("--repeats", type=positive, default=15, metavar="N")
    add("--keep", type=Path, metavar="DIR", help="where models are kept for the next time")
    add("--json", action="store_true", help="print a list of rows")
    for field in fields(Sizes):
        add(f"--{field.name.replace('_', '-')}", type=positive, default=field.default, metavar="N")
    options = parser.parse_args(arguments)
    options.sizes = Sizes(*(getattr(options, field.name) for field in fields(Sizes)))
    return options


if __name__ == "__main__":
    sys.exit(main())
