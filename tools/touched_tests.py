#!/usr/bin/env python3
"""Print the test files that reach the files changed since a commit.

    touched_tests.py [COMMIT]     default: HEAD, with what is not committed yet

A test file reaches what it and its conftest.py files import, directly or not. Imports by name
count as well: public functions of moh_deploy, commands, what entry points name, and modules that
`python -m` starts. A change that no import shows, such as one of a C++ source or of pyproject.toml,
prints `tests`: all.
"""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("moh_deploy", "tests")
# What documents and reports read is named in the tests that read it.
READ_BY_NAME = {".md", ".json", ".yaml", ".html", ".css", ".txt"}


def main() -> str | None:
    """Print a line a file; return why there is no line."""
    commit = sys.argv[1] if len(sys.argv) > 1 else "HEAD"
    found = tests_of(changed_files(commit))
    print("\n".join(found))
    return None if found else f"No test reaches a file that changed since {commit}."


def tests_of(changed: Iterable[Path]) -> list[str]:
    """Return the test files that reach changed files, or `tests` where that is not known."""
    reached: set[str] = set()
    for path in changed:
        found = _modules_of(path)
        if found is None:
            return ["tests"]
        reached |= found
    readers, waiting = _readers(), list(reached)
    while waiting:
        new = readers.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    modules = {_module(path): path for path in _sources()}
    tests = [name for name in reached & modules.keys() if ".test_" in name]
    return sorted(str(modules[name].relative_to(ROOT)) for name in tests)


@cache
def _sources() -> dict[Path, str]:
    return {path: path.read_text() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}


@cache
def _readers() -> dict[str, set[str]]:
    """Return each module with those that import it."""
    names = {_module(path) for path in _sources()}
    imports = {_module(path): set(_imports(text, names)) for path, text in _sources().items()}
    _add_imports_by_name(imports)
    readers: dict[str, set[str]] = {name: set() for name in names}
    for name, imported in imports.items():
        for other in imported:
            readers[other].add(name)
    return readers


def changed_files(commit: str) -> list[Path]:
    """Return the files that differ from a commit, and those that git does not know yet."""
    asked = (
        ["diff", "--name-only", "--no-renames", commit],
        ["ls-files", "--others", "--exclude-standard"],
    )
    lines = [
        subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for words in asked
    ]
    return [Path(line) for line in "".join(lines).splitlines()]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(text: str, modules: set[str]) -> Iterator[str]:
    """Yield the modules that a source imports anywhere in it, or names in a string."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            # `moh_deploy.export(...)`: a public function, whose module has its name, or that of an
            # add-on.
            names = [f"moh_deploy.api.{node.attr}", _added_functions().get(node.attr, "")]
            names = names if node.value.id == "moh_deploy" else []
        else:
            continue
        # Nearly all import `moh_deploy` itself: it has a version, and imports the rest when asked.
        yield from (name for name in names if name in modules and name != "moh_deploy")


@cache
def _entry_points() -> dict[str, dict[str, str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    points: dict[str, dict[str, str]] = project["entry-points"]
    return points


@cache
def _added_functions() -> dict[str, str]:
    functions = _entry_points()["moh_deploy.functions"]
    return {name: value.partition(":")[0] for name, value in functions.items()}


def _add_imports_by_name(imports: dict[str, set[str]]) -> None:
    commands = {name for name in imports if name.startswith("moh_deploy.cli.")}
    imports["moh_deploy.cli.group"] |= commands - {"moh_deploy.cli.group"}
    values = [value for points in _entry_points().values() for value in points.values()]
    imports["moh_deploy.add_ons"] |= {value.partition(":")[0] for value in values}
    for name in imports:
        folder = name
        while "." in folder:
            folder = folder.rpartition(".")[0]
            if f"{folder}.conftest" in imports and f"{folder}.conftest" != name:
                imports[name].add(f"{folder}.conftest")


def _modules_of(path: Path) -> set[str] | None:
    """Return the modules that a changed file is, or is read by; None if that is not known."""
    if path.suffix == ".py" and path.parts[0] in PACKAGES:
        # A module that is gone is imported by what changed with it.
        return {_module(ROOT / path)}
    named = {_module(source) for source, text in _sources().items() if path.name in text}
    if (
        path.parts[0] in ("docs", "examples", "export_configs", "tools")
        or path.suffix in READ_BY_NAME
    ):
        return named
    return None


if __name__ == "__main__":
    sys.exit(main())
