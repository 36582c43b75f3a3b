"""A command group that imports a command only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import click

from moh_deploy import __version__
from moh_deploy.cli.failure import EXIT_BROKEN_PIPE, exit_code_of, silence_stdout
from moh_deploy.system.suggest import did_you_mean


@dataclass(frozen=True)
class CommandHome:
    """Where a command lives.

    Attributes:
        module: Module that holds it as `command`.
        summary: The line that the group's `--help` shows.
    """

    module: str
    summary: str


class CommandGroup(click.Group):
    """Commands that are imported when they are called.

    Args:
        name: Name of the program.
        summary: What it does.
        homes: Command name to where it lives.
    """

    def __init__(self, name: str, summary: str, homes: Mapping[str, CommandHome]) -> None:
        super().__init__(name=name, help=summary)
        click.version_option(__version__, message=f"{name} %(version)s")(self)
        self._homes = homes

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; in standalone mode, end the process with the exit code."""
        arguments = list(sys.argv[1:] if args is None else args)
        extra.setdefault("obj", tuple(arguments))  # Reports show the command that made them.

        def run() -> object:
            name = prog_name or self.name
            return super(CommandGroup, self).main(arguments, name, complete_var, False, **extra)

        if not standalone_mode:
            return run()
        sys.exit(exit_code_of(run, as_json="--json" in arguments))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader that has gone away (`| head`) is no failure to report."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            silence_stdout()
            ctx.exit(EXIT_BROKEN_PIPE)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = self._homes.get(cmd_name)
        return None if home is None else cast(click.Command, import_module(home.module).command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self._homes and not name.startswith("-"):
            hint = did_you_mean(name, self._homes) or f"There are {', '.join(self._homes)}."
            raise click.UsageError(f"No such command '{name}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, home.summary) for name, home in self._homes.items()])
