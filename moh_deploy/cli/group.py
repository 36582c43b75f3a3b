"""A command group that imports a command only when it is called."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, cast

import click

from moh_deploy.add_ons import AddedCommand, EntryPoint, entry_points, missing_metadata
from moh_deploy.cli.completion import install_completion_option
from moh_deploy.cli.failure import EXIT_BROKEN_PIPE, exit_code_of, silence
from moh_deploy.errors import BackendError
from moh_deploy.system.suggest import did_you_mean


class CommandGroup(click.Group):
    """Commands that are imported when they are called: `moh_deploy.cli.HEADING` holds them.

    Those of add-ons stand behind them, and are looked for by `--help` and by other names alone.

    Args:
        name: Name of the program.
        summary: What it does.
        sections: Heading to the commands under it in `--help`, by name, with their summaries. A
            heading without any is the place of add-ons' commands.
        main_path: The commands that `--help` shows first, in the order in which they are called.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        sections: Mapping[str, Mapping[str, str]],
        main_path: Sequence[str],
    ) -> None:
        super().__init__(name=name, help=summary)
        install_completion_option(self)
        click.option(
            "--version",
            is_flag=True,
            expose_value=False,
            is_eager=True,
            help="Show the version and exit.",
            callback=_say_version,
        )(self)
        self._sections, self._main_path = sections, main_path
        self._names = [name for commands in sections.values() for name in commands]

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
            silence(sys.stdout)
            ctx.exit(EXIT_BROKEN_PIPE)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._names, *self._added()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "help":  # not listed: it does no job, and no function has its name
            from moh_deploy.cli.help import help_command

            return help_command
        if cmd_name in self._names:
            headings = (head for head, names in self._sections.items() if cmd_name in names)
            section = import_module(f"moh_deploy.cli.{next(headings).lower()}")
            return cast(click.Command, getattr(section, f"{cmd_name}_command"))
        point = self._added().get(cmd_name)
        if point is None:
            return None
        module, _, attribute = point.load(AddedCommand).module.partition(":")
        return point._replace(value=f"{module}:{attribute or 'command'}").load(click.Command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        known = (*self._names, "help")
        if name not in known and name not in self._added() and not name.startswith("-"):
            names = self.list_commands(ctx)
            hint = did_you_mean(name, names) or f"There are {', '.join(sorted(names))}."
            if problem := missing_metadata():
                hint += f" {problem.message} {problem.hint}"
            raise click.UsageError(f"No such command '{name}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text("Documentation: moh-deploy help")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections = {heading: dict(commands) for heading, commands in self._sections.items()}
        found = []
        for name, point in self._added().items():
            try:
                added = point.load(AddedCommand)
            except BackendError as error:  # Help is what a user with a broken add-on looks for.
                added = AddedCommand("Broken", error.message, "")
            found.append((added.place, name, added))
        for _, name, added in sorted(found):
            sections.setdefault(added.heading, {})[name] = added.summary
        summaries = {
            name: text for commands in sections.values() for name, text in commands.items()
        }
        first = {name: summaries[name] for name in self._main_path if name in summaries}
        sections = {
            "From a model to its answers": first,
            **{
                heading: {name: text for name, text in commands.items() if name not in first}
                for heading, commands in sections.items()
            },
        }
        width = max(map(len, self.list_commands(ctx)))
        for heading, commands in sections.items():
            if not commands:
                continue
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])

    def _added(self) -> dict[str, EntryPoint]:
        """Return the commands of add-ons; none takes the name of one that is ours."""
        points = entry_points("commands")
        return {name: point for name, point in points.items() if name not in self._names}


def _say_version(ctx: click.Context, parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked and not ctx.resilient_parsing:
        from moh_deploy.cli.version import version_text

        click.echo(version_text())
        ctx.exit()
