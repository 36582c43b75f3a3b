"""Benchmarks as modules: like any script, they import their neighbours by their bare names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a script by name; it and its neighbours are forgotten after the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield import_module
    for file in BENCHMARKS.glob("*.py"):
        sys.modules.pop(file.stem, None)
