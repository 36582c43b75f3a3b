#!/usr/bin/env python3
"""Plant random faults in moh_deploy, a fault at a time, and see whether its tests fail.

    mutants.py [--count 60] [--seed 0] [--from 0] [FOLDER ...]       folders of moh_deploy, or all

Each fault is planted in a copy of the tree. The tests that reach the file (touched_tests.py) run,
nearest first, until a test fails. A failed test is run again without the fault, and has to pass.
Survivors are printed last, for a reader to judge: some compute the same as before.
"""

import argparse
import ast
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from touched_tests import ROOT, tests_of

PACKAGE = ROOT / "moh_deploy"
LONGEST_S = 1500.0
SWAPPED: dict[type[ast.AST], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.And: "or",
    ast.Or: "and",
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
}


@dataclass(frozen=True)
class Mutant:
    """A file with an edit at a place in it, in characters."""

    path: Path
    line: int
    start: int
    stop: int
    new: str

    def text(self) -> str:
        source = (ROOT / self.path).read_text()
        return source[: self.start] + self.new + source[self.stop :]

    def __str__(self) -> str:
        old = (ROOT / self.path).read_text()[self.start : self.stop]
        return f"{self.path}:{self.line}: {' '.join(old.split())} -> {self.new}"


def main() -> int:
    """Return how many mutants survived, or killed tests that fail without them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--count", type=int, default=60)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--from", type=int, default=0, dest="first", help="go on at this fault")
    options.add_argument("folders", nargs="*", default=[""])
    given = options.parse_args()
    files = sorted({p for name in given.folders for p in (PACKAGE / name).rglob("*.py")})
    sites = [mutant for path in files for mutant in mutants_of(path.relative_to(ROOT))]
    chosen = random.Random(given.seed).sample(sites, min(given.count, len(sites)))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        _copy_tree(copy)
        bad = []
        for mutant in chosen[given.first :]:
            outcome = _outcome(copy, mutant)
            print(f"{outcome}: {mutant}", flush=True)
            if not outcome.startswith("killed"):
                bad.append(f"{outcome}: {mutant}")
    ran = len(chosen) - given.first
    print(f"{ran - len(bad)} of {ran} killed, seed {given.seed}", *bad, sep="\n")
    return len(bad)


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield the faults that could be planted in a file: operators, constants, conditions, calls."""
    source = (ROOT / path).read_text()
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def at(line: int, column: int) -> int:
        # ast counts columns in bytes.
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    def edit(first: ast.AST, last: ast.AST, new: str) -> Mutant:
        start = at(first.lineno, first.col_offset)  # type: ignore[attr-defined]
        stop = at(last.end_lineno, last.end_col_offset)  # type: ignore[attr-defined]
        return Mutant(path, first.lineno, start, stop, new)  # type: ignore[attr-defined]

    def between(left: ast.expr, right: ast.expr, new: str) -> Mutant:
        # Brackets may close before the operator, and open behind it: they stay.
        start, stop = at(left.end_lineno, left.end_col_offset), at(right.lineno, right.col_offset)
        found = re.search(r"[^\s()#\\]+(?:\s+(?:not|in)\b)?", source[start:stop])
        assert found is not None
        return Mutant(path, left.end_lineno, start + found.start(), start + found.end(), new)

    for node in _run_code(ast.parse(source)):
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in SWAPPED:
                yield between(left, right, SWAPPED[type(op)])
            case ast.BoolOp(op=op, values=[left, right, *_]):
                yield between(left, right, SWAPPED[type(op)])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in SWAPPED:
                yield between(left, right, SWAPPED[type(op)])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield edit(node, node, f"bool({ast.unparse(operand)})")
            case ast.Constant(value=bool() as value):
                yield edit(node, node, str(not value))
            case ast.Constant(value=int() as value) if value <= 2:
                yield edit(node, node, str(value + 1))
            case ast.If(test=test) | ast.IfExp(test=test):
                yield edit(test, test, f"(not ({ast.unparse(test)}))")
            case ast.Expr(value=ast.Call()) | ast.Raise():
                yield edit(node, node, "pass")
            case ast.Return(value=value) if value is not None and ast.unparse(value) != "None":
                yield edit(node, node, "return None")


def _run_code(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what runs: no annotations, decorators, default texts or imports for types alone."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "format_spec"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _run_code(child)


def _copy_tree(copy: Path) -> None:
    """Copy the files of git, new ones too, and the kernels; link what else was built."""
    listed = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    built = PACKAGE.rglob("native/*.*")
    for path in {*map(Path, names.splitlines()), *(p.relative_to(ROOT) for p in built)}:
        if (ROOT / path).is_file():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, copy / path)
    for name in ("build", *(path.name for path in ROOT.glob("*.egg-info"))):
        if (ROOT / name).exists():
            (copy / name).symlink_to(ROOT / name)
    subprocess.run(["git", "init", "-q"], cwd=copy, check=True)


def _outcome(copy: Path, mutant: Mutant) -> str:
    """Return `killed by TEST`, `SURVIVED`, or a test that fails without the fault as well."""
    tests = tests_of([mutant.path])
    if not tests:
        return "NO TEST REACHES"
    parts = mutant.path.with_suffix("").parts[1:]

    def distance(test: str) -> tuple[bool, int, str]:
        name = Path(test)
        pairs = zip(name.parts[1:-1], parts[:-1], strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return name.stem != f"test_{parts[-1]}", -shared, test

    tests = sorted(tests, key=distance)
    (copy / mutant.path).write_text(mutant.text())
    try:
        near = [test for test in tests if distance(test)[1] == -len(parts[:-1])]
        far = [test for test in tests if test not in near]
        runs = (_first_failure(copy, part) for part in (near, far) if part)
        failed = next(filter(None, runs), None)
    finally:
        shutil.copy2(ROOT / mutant.path, copy / mutant.path)
    if failed is None:
        return "SURVIVED"
    if failed.startswith("tests") and _first_failure(copy, [failed]) is not None:
        return f"FAILS WITHOUT THE FAULT ({failed})"
    return f"killed by {failed}"


def _first_failure(copy: Path, tests: list[str]) -> str | None:
    """Return the name of the first test that fails, if any."""
    several = ["-n", "2", "--dist=worksteal"] if len(tests) > 4 else []
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--no-header", "--tb=no"]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(
            [*command, *several, *tests],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
        )
    except subprocess.TimeoutExpired:
        return f"a run of {LONGEST_S:.0f} s"
    if run.returncode in (0, 5):  # 5: no test was selected, e.g. all of them run at night
        return None
    named = r"^(?:FAILED|ERROR) (tests/[^\s\[]+(?:\[.*\])?)(?: - |$)"
    found = re.search(named, run.stdout, re.MULTILINE)
    return found[1] if found else f"pytest's exit code {run.returncode}"


if __name__ == "__main__":
    sys.exit(main())
