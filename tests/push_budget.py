"""Keeps a push short: how many tests each folder may have in it, and what they may take.

How many is held (--push-budget, as CI is run); how long depends on the machine, and is printed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

BUDGETS = Path(__file__).with_name("push_budget.yaml")
OTHERS = "others"
"""Folders that have no budget of their own, and the files that lie in `tests/` itself."""


@dataclass(frozen=True)
class Spent:
    """What tests are, or may be.

    Attributes:
        tests: How many.
        seconds: In all their phases, of one process: of a budget, on two quiet cores.
    """

    tests: int
    seconds: float


def budgets(path: Path = BUDGETS) -> dict[str, Spent]:
    """Return what a push may take, by folder of `tests/`."""
    return {name: Spent(**entry) for name, entry in yaml.safe_load(path.read_text()).items()}


def spent_by_folder(reports: Iterable[pytest.TestReport], path: Path = BUDGETS) -> dict[str, Spent]:
    """Return what was taken, for each name of the budget that has tests in these reports.

    A test has up to three reports, of its phases, and counts once.
    """
    seconds: dict[str, float] = {}
    seen: dict[str, set[str]] = {}
    known = budgets(path)
    for report in reports:
        folder, inside, _ = report.nodeid.removeprefix("tests/").partition("/")
        name = folder if inside and folder in known else OTHERS
        seconds[name] = seconds.get(name, 0.0) + report.duration
        seen.setdefault(name, set()).add(report.nodeid)
    return {name: Spent(len(seen[name]), seconds[name]) for name in sorted(seen)}


def compared(spent: Mapping[str, Spent], allowed: Mapping[str, Spent]) -> list[str]:
    """Return a table of what was taken and what may be: longest first, and the sum."""
    rows = sorted(spent.items(), key=lambda row: -row[1].seconds)
    lines = [f"{'tests/':<12}{'tests':>8}{'at most':>9}{'seconds':>10}{'budget':>8}"]
    lines += [_row(name, item, allowed.get(name, Spent(0, 0))) for name, item in rows]
    return [*lines, _row("all", _sum(spent.values()), _sum(allowed.values()))]


def excesses(spent: Mapping[str, Spent], allowed: Mapping[str, Spent]) -> list[str]:
    """Return a sentence for each folder that has more tests than a push may run of it."""
    return [
        f"tests/{name}: {item.tests} tests in a push, at most {allowed[name].tests}. Leave those "
        f"whose like it runs anyway to the night (tests/nightly.py), or change {BUDGETS.name} "
        "and say what is given up for it"
        for name, item in spent.items()
        if name in allowed and item.tests > allowed[name].tests
    ]


def _row(name: str, spent: Spent, allowed: Spent) -> str:
    return (
        f"{name:<12}{spent.tests:>8}{allowed.tests:>9}{spent.seconds:>10.1f}{allowed.seconds:>8.0f}"
    )


def _sum(several: Iterable[Spent]) -> Spent:
    kept = list(several)
    return Spent(sum(item.tests for item in kept), sum(item.seconds for item in kept))
