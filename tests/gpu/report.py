"""The JSON file of a stage: whole on the disk after every step, whatever happens next."""

import json
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import cast

from tests.gpu.plan import BUILD_S
from tests.gpu.steps import Facts, Json, Result, Step, finite


class Report:
    """What a stage has found out so far.

    A full disk loses nothing but the file: rows are printed, and written as soon as there is room.

    Attributes:
        header: Facts of the whole stage.
        problem: Why the file is not as it should be; empty if it is.
    """

    def __init__(self, path: Path, header: Facts) -> None:
        self.path = path
        self.problem = ""
        self.results: list[Result] = []
        self.header = header
        self._rows: list[str] = []
        self._write()

    def note(self, **facts: Json) -> None:
        """Set facts of the whole stage."""
        self.header |= facts
        self._write()

    def add(self, result: Result) -> None:
        """Print a step's result and write the file again."""
        row = json.dumps(result.row(), allow_nan=False)
        self.results.append(result)
        self._rows.append(row)
        if result.status != "passed" or result.facts:
            print(row, flush=True)
        self._write()

    def _write(self) -> None:
        header = json.dumps(finite(self.header), indent=1, allow_nan=False).removesuffix("\n}")
        rows = ",\n  ".join(self._rows)
        text = f'{header},\n "rows": [\n  {rows}\n ]\n}}\n'
        self.problem = write_whole(self.path, text.encode())


def write_whole(path: Path, content: bytes) -> str:
    """Replace a file at once, or leave it as it was and say why."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        return f"{path} could not be written: {error.strerror or error}"
    return ""


# The tables that a person reads: a plan with its seconds, and what the timings came to.


def plan_lines(stage: str, steps: Sequence[Step], budget_s: float) -> Iterator[str]:
    """Yield the steps of a stage by kind, with the second at which each kind should be done."""
    machine, *others = steps
    yield f"{stage}: {budget_s:g} s after the build"
    yield f"  {machine.expected_s:6.0f} s  {machine.name}"
    yield f"  {BUILD_S:6.0f} s  build, unless it was built before"
    at = 0.0
    for kind, members in groupby(others, key=_kind):
        group = list(members)
        cut = 0
        for step in group:
            if at + step.expected_s <= budget_s:
                at += step.expected_s
            else:
                cut += 1
        yield f"  {at:6.0f} s  {len(group):4d} x {kind}{f', {cut} cut' if cut else ''}"


def _kind(step: Step) -> str:
    job, *_ = step.name.split("/")
    details = [str(step.arguments[name]) for name in ("dtype", "share") if name in step.arguments]
    return " ".join([job, *details])


def timing_lines(results: Sequence[Result]) -> Iterator[str]:
    """Yield a line for each timing: ours, and how often the others take as long."""
    for result in results:
        facts = result.facts
        if "candidates" in facts:
            ours = next(iter(cast(dict[str, Facts], facts["candidates"]).values()))
            yield f"{result.step:44} {ours['us']:9.1f} us  {' '.join(_others(facts))}"


def _others(facts: Facts) -> Iterator[str]:
    for kind in ("gated", "plain"):
        if f"best_{kind}" in facts:
            yield f"{facts[f'times_best_{kind}']:.2f} x {facts[f'best_{kind}']}"
