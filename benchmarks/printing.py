"""What a benchmark prints: where its figures come from, and its rows as tables or as JSON."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from process_cost import load_average, machine
from rich.console import Console
from rich.table import Table

import moh_deploy


def environment(start_load: str) -> dict[str, str]:
    """Return what the machine is, how busy it was, and which installation was measured."""
    # A program in another folder than the sources may import another installation of moh_deploy.
    found = {"moh_deploy from": str(Path(moh_deploy.__file__).parent)}
    return {**machine(), "load at start": start_load, "load at end": load_average(), **found}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages by name."""
    return {name: _version(name) for name in packages}


def print_results(
    about: Mapping[str, str],
    rows: Sequence[Mapping[str, object]],
    tables: Iterable[Table],
    *,
    as_json: bool,
    width: int,
) -> None:
    """Print rows to stdout, below what they depend on, which goes to stderr beside JSON.

    Args:
        width: Columns of a line where stdout is no terminal.
    """
    console = Console(stderr=as_json, width=None if sys.stdout.isatty() else width)
    for name, value in about.items():
        console.print(f"{name:14} {value}", markup=False, highlight=False)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for table in tables:
        console.print(table)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
