"""SECURITY.md names options, commands and files that are there, and all commands with an option."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from moh_deploy.cli import main

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()
(TABLE,) = re.findall(r"\| file \|.*\n\|[-|]+\n((?:\|.*\n)+)", TEXT)
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines()]


def options_of(command: str) -> set[str]:
    """Return the options that `--help` of a command shows."""
    found = main.get_command(click.Context(main), command)
    assert found is not None, command
    return {option for one in found.params for option in one.opts}


COMMANDS = {name: options_of(name) for name in main.list_commands(click.Context(main))}


@pytest.mark.parametrize("option", ["--trust-code", "--trust-pickle"])
def test_commands_of_the_table_are_those_that_take_the_option(option: str):
    named = [re.findall(r"`(\w+)`", row[2]) for row in ROWS if row[3] == f"`{option}`"]
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
