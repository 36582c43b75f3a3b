"""Run the tables: faults and honest variations, by precision."""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from tests.validate.mutations.faults import FAULTS
from tests.validate.mutations.packages import PRECISIONS
from tests.validate.mutations.problems import problems
from tests.validate.mutations.runs import Found, Task, carry_out
from tests.validate.mutations.subjects import SUBJECTS
from tests.validate.mutations.tables import fault_table, honest_table, without_effect
from tests.zoo import ZooModel


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, and print the tables; return 1 if they show what must not be."""
    options = _parser().parse_args(arguments)
    models = _chosen(options.only, options.models)
    # Float32 first: the packages of the others are made of it, in whichever process asks for them.
    tasks = [Task(model.name, p) for p in options.precision or PRECISIONS for model in models]
    found = []
    for task, item in zip(tasks, _run(tasks, options), strict=True):
        found.append(item)
        print(
            f"{time.strftime('%H:%M:%S')} {task.model} {task.precision}:"
            f" {len(item.planted)} faults, {len(item.varied)} variations",
            file=sys.stderr,
            flush=True,
        )
        if options.json:
            _write(options.json, found)
    return _print_tables(found, whole=_is_whole(options))


def _print_tables(found: Sequence[Found], *, whole: bool) -> int:
    planted = [row for item in found for row in item.planted]
    varied = [row for item in found for row in item.varied]
    if planted:
        _print(fault_table(planted))
        _print(without_effect(planted))
    if varied:
        _print(honest_table(varied))
    wrong = list(problems(planted, varied, whole=whole))
    _print([f"problems: {len(wrong)}", *wrong])
    return 1 if wrong else 0


def _is_whole(options: argparse.Namespace) -> bool:
    """Tell whether every fault is planted in every model."""
    chosen = options.only or options.models is not None or set(options.faults) != set(FAULTS)
    return not chosen and options.what != "honest" and options.layers == "all"


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
    parser.add_argument("--cache", type=Path, required=True, help="where packages are kept")
    return parser


def _chosen(names: Sequence[str], count: int | None) -> list[ZooModel]:
    known = [model.name for model in SUBJECTS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"no models {', '.join(unknown)}; there are {', '.join(known)}.")
    return [model for model in SUBJECTS if not names or model.name in names][:count]


def _run(tasks: Sequence[Task], options: argparse.Namespace) -> Iterable[Found]:
    work = partial(carry_out, options=options)
    if options.jobs == 1:
        yield from map(work, tasks)
        return
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, tasks)


def _write(path: Path, found: Sequence[Found]) -> None:
    rows = {
        "faults": [row.to_json() for item in found for row in item.planted],
        "honest": [asdict(row) for item in found for row in item.varied],
        "skipped": [item.skipped for item in found],
    }
    path.write_text(json.dumps(rows, indent=1))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
    print()


if __name__ == "__main__":
    sys.exit(main())
