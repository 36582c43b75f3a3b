"""The example that the `--help` of a command begins with, as a shell reads it."""

import shlex

from moh_deploy.cli.command import Command


def example_lines(command: Command) -> list[list[str]]:
    """Return the words of each command in an example."""
    joined = command.example.replace("\\\n", " ")
    return [shlex.split(line) for line in joined.splitlines()]
