"""Make a command of a function: its options are read from the types of its parameters.

    class ToRun(TypedDict):
        package_dir: Annotated[Path, Argument("DIR")]
        inputs: Annotated[tuple[Path, ...], "FILE.npz", "Inputs, named as in the model."]
        output_names: Annotated[tuple[str, ...], "--output-name NAME", "Name of an output."]

    @command("run")
    def run_command(as_json: options.Json, **given: Unpack[ToRun]) -> None:
        '''Run the package DIR once.

        Example:
            moh-deploy run build/model --inputs in.npz
        '''

The type says what an option takes, how often, and whether it is required. Behind it stand its flags
(if they are not those of the name) and what `--help` calls its value, then its help. More may
follow: a type of click, a `Default`, a function that reads all values at once, its heading. Keys
have the names and types of the public function's parameters, which mypy compares: a new option is a
line here and a parameter in `api/COMMAND.py`.

`--help` begins with the example, then shows the options without a heading (those of every day), and
the others by heading. What a function takes beside `**given` comes first among the former and last
among the latter.
"""

# Files of commands quote annotations only where a type is heavy to import.

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import dedent, indent
from types import FunctionType, MappingProxyType, NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import click

from moh_deploy.cli.values import FILE_PATH
from moh_deploy.config.deprecated import DEPRECATED


class Argument(NamedTuple):
    """A parameter that is no option."""

    metavar: str | None = None  # what `--help` calls it; None for its name
    nargs: int = 1  # how many values it takes; -1: any number


class Default(NamedTuple):
    """The value where an option is not given."""

    value: object
    shown: bool = True


class Under(NamedTuple):
    """The heading of `--help` that an option stands under."""

    heading: str


class OptionGroup(NamedTuple):
    """Marks a TypedDict as a group of options; a command may take some of them."""

    heading: str
    keys: tuple[str, ...] = ()
    # The option that shows the group, where `--help` leaves it out.
    shown_by: str = ""


class Command(click.Command):
    """A command whose `--help` begins with an example, and shows options by headings.

    Args:
        example: The lines of the example.
        page: The page of `moh-deploy help` that says more.
        headings: Name of a parameter to its heading, where it has one.
        apart: Heading to the option that shows it, where `--help` does not.
        many: Name of an option that may take many values at once, to the form of its values, by
            which they are told from other arguments.
    """

    def __init__(
        self,
        *args: Any,
        example: str = "",
        page: str = "",
        headings: Mapping[str, str] = MappingProxyType({}),
        apart: Mapping[str, str] = MappingProxyType({}),
        many: Mapping[str, str] = MappingProxyType({}),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.example, self.page = example, page
        self._headings, self._apart, self._many = headings, apart, many
        self.params += [
            click.Option(
                [flag],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=self._show(heading),
                help=f"Show the options of '{heading}', and exit.",
            )
            for heading, flag in apart.items()
        ]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                # Not wrapped: it is to be copied.
                formatter.write(f"{indent(self.example, ' ' * formatter.current_indent)}\n")
            formatter.write_paragraph()
        super().format_help(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, records in self._sections(ctx).items():
            if heading not in self._apart:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.page:
            formatter.write_paragraph()
            formatter.write_text(f"More: moh-deploy help {self.page}")

    def _sections(self, ctx: click.Context) -> dict[str, list[tuple[str, str]]]:
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                heading = self._headings.get(param.name or "", "Options")
                sections.setdefault(heading, []).append(record)
        # All commands have these, and they matter least before there is an answer.
        return dict(sorted(sections.items(), key=lambda section: section[0] == "Reports"))

    def _show(self, heading: str) -> Callable[[click.Context, click.Parameter, bool], None]:
        def show(ctx: click.Context, param: click.Parameter, is_asked: bool) -> None:
            if is_asked and not ctx.resilient_parsing:
                formatter = ctx.make_formatter()
                with formatter.section(heading):
                    formatter.write_dl(self._sections(ctx)[heading])
                click.echo(formatter.getvalue(), nl=False)
                ctx.exit()

        return show

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {flag for param in self.params for flag in param.opts}
        # `--name=value` is an option, too.
        parts = [arg.partition("=") for arg in args]
        args = [f"{_current(flag, known)}{equals}{value}" for flag, equals, value in parts]
        return super().parse_args(ctx, list(self._repeated(args)))

    def _repeated(self, args: Sequence[str]) -> Iterator[str]:
        """Name an option of `many` again before each further value."""
        option, is_first = "", False
        for arg in args:
            is_value = bool(option) and re.fullmatch(self._many[option], arg) is not None
            if is_value and not is_first:
                yield option
            is_first = arg in self._many
            option = arg if is_first else option if is_value else ""
            yield arg


class _Choice(click.Choice[str]):
    """A choice that takes the deprecated name of a value, too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(_current(value, self.choices), param, ctx)


def _current(name: str, known: Collection[str]) -> str:
    """Return today's name of an option or a value, with a warning for a deprecated one."""
    deprecated = DEPRECATED.get(name)
    if deprecated is None or deprecated.new not in known:
        return name
    click.echo(f"warning: {deprecated.message}", err=True)
    return deprecated.new


def command(name: str, **settings: Any) -> Callable[[Callable[..., None]], Command]:
    """Make a command of a function."""

    def make(function: Callable[..., None]) -> Command:
        given = get_args(function.__annotations__.get("given"))
        own = _options(function)
        everyday = {
            key: hint for key, hint in own.items() if not _marks(hint, (Under, OptionGroup))
        }
        found = everyday | (_options(given[0]) if given else {}) | own
        params: list[click.Parameter] = []
        headings: dict[str, str] = {}
        apart: dict[str, str] = {}
        groups: dict[str, tuple[str, ...]] = {}
        for key, hint in found.items():
            options = {key: hint}
            for group in _marks(hint, OptionGroup):
                options = {
                    option: hint
                    for option, hint in _options(get_args(hint)[0]).items()
                    if option in group.keys or not group.keys
                }
                groups[key] = tuple(options)
                headings |= dict.fromkeys(options, group.heading)
                apart |= {group.heading: group.shown_by} if group.shown_by else {}
            for option, hint in options.items():
                params.append(_parameter(option, hint))
                for mark in _marks(hint, Under):
                    headings[option] = mark.heading

        def call(**values: object) -> None:
            for key, group in groups.items():
                values[key] = {option: values.pop(option) for option in group}
            function(**values)

        help, _, example = (inspect.getdoc(function) or "").partition("\n\nExample:\n")
        return Command(
            name,
            callback=call,
            params=params,
            help=help,
            example=dedent(example),
            headings=headings,
            apart=apart,
            **settings,
        )

    return make


def _marks(hint: Any, kind: Any) -> list[Any]:
    return [mark for mark in hint.__metadata__ if isinstance(mark, kind)]


def _options(form: Any) -> dict[str, Any]:
    """Return the annotations of a function or a TypedDict that are options, by name."""
    hints = form.__annotations__.items()
    return {name: hint for name, hint in hints if get_origin(hint) is Annotated}


def _parameter(name: str, hint: Any) -> click.Parameter:
    form, *more = get_args(hint)
    is_optional = NoneType in get_args(form)
    if is_optional:
        form = get_args(form)[0]
    is_many = isinstance(get_origin(form), type)  # a tuple or mapping, and no Literal
    item = get_args(form)[0] if get_origin(form) is tuple else form
    # `tuple[Path, *tuple[Path, ...]]`: one at least.
    needs_one = get_origin(form) is tuple and get_args(form)[1] is not ...
    settings: dict[str, Any] = {"required": needs_one or not (is_optional or is_many)}
    if get_origin(item) is Literal:
        settings["type"] = _Choice(get_args(item))
    elif not any(isinstance(found, FunctionType) for found in more):
        settings["type"] = FILE_PATH if item is Path else item
    texts: list[str] = []
    for found in more:
        match found:
            case str():
                texts.append(found)
            case click.ParamType():
                settings["type"] = found
            case Default():
                settings |= {"default": found.value, "show_default": found.shown, "required": False}
            case FunctionType():
                settings["callback"] = found
            case Argument():
                return click.Argument([name], metavar=found.metavar, nargs=found.nargs, **settings)
    usage, help = texts if len(texts) == 2 else ("", *texts)
    words = usage.split(" ")
    flags = [word for word in words if word.startswith("-")] or [f"--{name.replace('_', '-')}"]
    metavar = " ".join(word for word in words if not word.startswith("-"))
    if is_many and "Repeatable" not in help and not metavar.endswith(" ..."):
        help = f"{help} Repeatable."
    settings = {"is_flag": True} if item is bool else {**settings, "multiple": is_many}
    # An option that is for our own processes has no help.
    settings |= {"metavar": metavar or None, "help": help, "hidden": not help}
    return click.Option([*flags, name], **settings)
