"""Run the tables: faults and honest variations, by precision."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.validate.mutations.faults import FAULTS
from tests.validate.mutations.packages import PRECISIONS, Precision
from tests.validate.mutations.planting import FaultInjection, Planted, planted_from
from tests.validate.mutations.subjects import SUBJECTS
from tests.validate.mutations.tables import fault_table, honest_table, without_effect
from tests.validate.mutations.variations import (
    EXPORTED_ANEW,
    VARIATIONS,
    Subject,
    Varied,
    varied_from,
    vary,
)
from tests.zoo import ZooModel


class Task(NamedTuple):
    """One model in one precision."""

    model: str
    precision: Precision


class Found(NamedTuple):
    """What came of a task."""

    planted: list[Planted]
    varied: list[Varied]
    skipped: dict[str, str]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for, and print the tables."""
    options = _parser().parse_args(arguments)
    if options.read:
        _print_tables([_read(path) for path in options.read])
        return
    if options.cache is None:
        raise SystemExit("--cache DIR says where packages are kept.")
    models = _chosen(options.only, options.models)
    tasks = [Task(model.name, p) for model in models for p in options.precision or PRECISIONS]
    found = []
    for task, one in zip(tasks, _run(tasks, options), strict=True):
        found.append(one)
        print(
            f"{time.strftime('%H:%M:%S')} {task.model} {task.precision}:"
            f" {len(one.planted)} faults, {len(one.varied)} variations",
            file=sys.stderr,
            flush=True,
        )
        if options.json:
            _write(options.json, found)
    _print_tables(found)


def _print_tables(found: Sequence[Found]) -> None:
    planted = [row for one in found for row in one.planted]
    varied = [row for one in found for row in one.varied]
    if planted:
        _print(fault_table(planted))
        _print(without_effect(planted))
    if varied:
        _print(honest_table(varied))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.validate.mutations", description=__doc__)
    parser.add_argument("--models", type=int, help="the first so many; all without")
    parser.add_argument("--only", nargs="*", default=(), help="names of models")
    parser.add_argument("--precision", nargs="*", choices=PRECISIONS, help="all without")
    parser.add_argument("--faults", nargs="*", default=tuple(FAULTS), help="names of faults")
    parser.add_argument("--layers", choices=("all", "middle"), default="all")
    parser.add_argument("--what", choices=("faults", "honest", "both"), default="both")
    parser.add_argument("--by-size", action="store_true", help="plant in packages with branches")
    parser.add_argument("--opsets", action="store_true", help="export anew for other opsets")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="write every row there")
    parser.add_argument("--cache", type=Path, help="where packages are kept")
    parser.add_argument("--read", type=Path, nargs="*", help="print the tables of such files again")
    return parser


def _chosen(names: Sequence[str], count: int | None) -> list[ZooModel]:
    known = [model.name for model in SUBJECTS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"no models {', '.join(unknown)}; there are {', '.join(known)}.")
    return [model for model in SUBJECTS if not names or model.name in names][:count]


def _run(tasks: Sequence[Task], options: argparse.Namespace) -> Iterable[Found]:
    work = partial(_found, options=options)
    if options.jobs == 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, tasks)


def _found(task: Task, options: argparse.Namespace) -> Found:
    warnings.simplefilter("ignore")  # ONNX's reference warns of NaN on the way of a blind query
    model = next(one for one in SUBJECTS if one.name == task.model)
    with TemporaryDirectory() as scratch:
        return _found_in(Path(scratch, "package"), task, model, options)


def _found_in(scratch: Path, task: Task, model: ZooModel, options: argparse.Namespace) -> Found:
    planted, varied, skipped = [], [], {}
    if options.what != "honest":
        injection = FaultInjection(model, options.cache, scratch, by_size=options.by_size)
        middle = (len(injection.package.manifest.layers) - 1) // 2
        planted = list(
            injection.plant_all(
                task.precision,
                faults=options.faults,
                layers=lambda index: options.layers == "all" or index == middle,
            )
        )
        skipped = {f"{fault}/{index}": why for (fault, index), why in injection.skipped.items()}
    if options.what != "faults":
        subject = Subject(model, task.precision, options.cache, scratch)
        names = [one for one in VARIATIONS if options.opsets or one not in EXPORTED_ANEW]
        varied = list(vary(subject, names))
    return Found(planted, varied, skipped)


def _write(path: Path, found: Sequence[Found]) -> None:
    rows = {
        "faults": [row.to_json() for one in found for row in one.planted],
        "honest": [row.to_json() for one in found for row in one.varied],
        "skipped": [one.skipped for one in found],
    }
    path.write_text(json.dumps(rows, indent=1))


def _read(path: Path) -> Found:
    rows = json.loads(path.read_text())
    return Found(
        [planted_from(row) for row in rows["faults"]],
        [varied_from(row) for row in rows["honest"]],
        {},
    )


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
    print()


if __name__ == "__main__":
    main()
