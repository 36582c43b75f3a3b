"""docs/architecture.md names the folders that there are, docs/extend.md files that are there."""

import re
from pathlib import Path

import click
import pytest

from moh_deploy.cli import main

ROOT = Path(__file__).parents[1]
MAP = ROOT / "docs" / "architecture.md"
EXTEND = ROOT / "docs" / "extend.md"


def _mapped() -> set[str]:
    """Return the folders of the map, read by their indentation."""
    text = MAP.read_text().split("## The map")[1].split("```text")[1].split("```")[0]
    folders: set[str] = set()
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        found = re.match(r" *((?:[\w/]+/(?:  )?)+)", line)
        if found is None:
            continue
        indent = len(line) - len(line.lstrip())
        above = [(column, path) for column, path in above if column < indent]
        for name in found[1].split():
            path = "/".join([*(path for _, path in above[-1:]), name.rstrip("/")])
            folders.add(path)
        above.append((indent, path))
    return folders


def _packages() -> set[str]:
    return {str(path.parent.relative_to(ROOT)) for path in (ROOT / "moh_deploy").rglob("*.py")}


def test_every_package_is_on_the_map():
    assert _packages() - _mapped() == set()


@pytest.mark.parametrize("folder", sorted(_mapped()))
def test_folder_of_the_map_exists(folder: str):
    assert (ROOT / folder).is_dir()


def test_files_to_touch_exist():
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|md))`", MAP.read_text() + EXTEND.read_text())
    assert named
    missing = [
        item
        for item in named
        if not any((ROOT / at / item).is_file() for at in ("", "moh_deploy", "docs"))
    ]
    assert missing == []


# SECURITY.md names options, commands and files that are there, and all commands with an option.


TEXT = (ROOT / "SECURITY.md").read_text()
(TABLE,) = re.findall(r"\| file \|.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT)
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines()]


def options_of(command: str) -> set[str]:
    """Return the options that `--help` of a command shows."""
    found = main.get_command(click.Context(main), command)
    assert found is not None, command
    return {option for param in found.params for option in param.opts}


COMMANDS = {name: options_of(name) for name in main.list_commands(click.Context(main))}


@pytest.mark.parametrize("option", ["--trust-code", "--trust-pickle"])
def test_commands_of_the_table_are_those_that_take_the_option(option: str):
    (loading,) = re.findall(r"^(.*)\bload the original\.", TEXT, re.M)
    cells = [
        row[2].replace("all that load the original", loading)
        for row in ROWS
        if row[3] == f"`{option}`"
    ]
    named = [re.findall(r"`(\w+)`", cell) for cell in cells]
    takes = {name for name, options in COMMANDS.items() if option in options}
    assert {command for row in named for command in row} == takes


def test_every_option_in_the_text_is_one_of_a_command():
    known = set().union(*COMMANDS.values()) | {"--version"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT)) <= known


def test_files_and_targets_in_the_text_are_there():
    for path in re.findall(r"`([\w./-]+/[\w.-]*|[\w-]+\.txt)`", TEXT):
        assert (ROOT / path).exists(), path
    (target,) = re.findall(r"`make (\w+)`", TEXT)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
