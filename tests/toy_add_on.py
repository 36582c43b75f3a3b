"""An add-on in a folder, as pip installs one: modules, and metadata with their entry points."""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from moh_deploy import add_ons
from tests.cli.run_cli import REPOSITORY

MODULE = """
from dataclasses import dataclass

import click

from moh_deploy.add_ons import AddedCommand
from moh_deploy.machine.machine import Ability, AddOnFacts

GREET = AddedCommand("Toys", "Greet the world.", "toy_command")


def toy():
    return "a toy"


@dataclass(frozen=True)
class ToyFacts(AddOnFacts):
    toy: str

    def found(self):
        yield "toy", self.toy

    def abilities(self, machine):
        yield Ability.of("run toys", (), f"{self.toy} on {machine.platform}")


def probe(plugin):
    return ToyFacts("toy 1.0")


def careless_probe(plugin):
    raise OSError("no driver")
"""
COMMAND = """
import click


@click.command("greet")
def command():
    click.echo("hello")
"""
TOY: Mapping[str, Mapping[str, str]] = {
    "commands": {"greet": "toy:GREET"},
    "functions": {"toy": "toy:toy"},
    "runtimes": {"toy": "toy:probe"},
}


def entry_points_text(groups: Mapping[str, Mapping[str, str]]) -> str:
    """Return the `entry_points.txt` of an add-on, by its groups without their prefix."""
    sections = [
        "\n".join([f"[moh_deploy.{group}]", *(f"{name} = {to}" for name, to in points.items())])
        for group, points in groups.items()
    ]
    return "\n\n".join(sections) + "\n"


def own_entry_points() -> str:
    """Return the `entry_points.txt` that an installation of moh-deploy has."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    groups = project["entry-points"]
    return entry_points_text({name.removeprefix("moh_deploy."): groups[name] for name in groups})


def write_metadata(folder: Path, name: str, entry_points: str) -> None:
    """Write what pip writes of a distribution."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def install(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: Mapping[str, Mapping[str, str]] = TOY,
    *,
    name: str = "toy",
) -> None:
    """Install an add-on, for this test and the processes that it starts."""
    write_metadata(folder, name, entry_points_text(groups))
    (folder / "toy.py").write_text(MODULE)
    (folder / "toy_command.py").write_text(COMMAND)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{REPOSITORY}")
    add_ons._all.cache_clear()


@pytest.fixture
def add_ons_are_read_again() -> Iterator[None]:
    """Forget, after a test, which add-ons were installed in it."""
    yield
    add_ons._all.cache_clear()
