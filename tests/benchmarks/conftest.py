"""Benchmarks as modules: like any script, they import their neighbours by their bare names."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LoadBenchmark = Callable[[str], ModuleType]
RowsOf = Callable[..., list[dict[str, object]]]


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadBenchmark]:
    """Import a script by name; it and its neighbours are forgotten after the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield import_module
    for file in BENCHMARKS.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def rows_of(capsys: pytest.CaptureFixture[str]) -> RowsOf:
    """Run the main function of a benchmark, and return the rows that it prints."""

    def rows(bench: ModuleType, *options: str) -> list[dict[str, object]]:
        assert bench.main([*options, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return rows


def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark in a process of its own."""
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
