"""How long `moh-deploy --help` and the `--help` of each command take, in fresh processes."""

import sys
from collections.abc import Iterator
from statistics import median

import click
from process_cost import load_average, measure
from rich.console import Console
from rich.table import Table

from moh_deploy.cli import main as moh_deploy

RUNS = 10


def main() -> None:
    title = f"Medians of {RUNS} runs; load average {load_average()}"
    table = Table("command", "wall, ms", "cpu, ms", title=title, title_justify="left")
    for words in command_lines():
        command = [sys.executable, "-m", "moh_deploy", *words]
        measure(command)  # the first run reads the files from disk
        costs = [measure(command) for _ in range(RUNS)]
        table.add_row(
            " ".join(["moh-deploy", *words]),
            f"{1000 * median(cost.wall_s for cost in costs):.0f}",
            f"{1000 * median(cost.cpu_s for cost in costs):.0f}",
        )
    Console().print(table)


def command_lines() -> Iterator[list[str]]:
    yield ["--help"]
    for name in moh_deploy.list_commands(click.Context(moh_deploy)):
        yield [name, "--help"]


if __name__ == "__main__":
    main()
