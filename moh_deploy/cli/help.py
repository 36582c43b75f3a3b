"""`moh-deploy help`: the pages of docs/, which the wheel brings along."""

import re
from pathlib import Path

import click

from moh_deploy.cli.failure import writing_stdout
from moh_deploy.system.suggest import did_you_mean

_COMMENT = re.compile(r"^ *<!-- .* -->\n", re.MULTILINE)
"""What a rendered page does not show."""


@click.command("help")
@click.argument("topic", required=False)
@click.pass_context
def help_command(ctx: click.Context, topic: str | None) -> None:
    """Show the page TOPIC of the documentation, or list the pages.

    Of a command without a page of its name, show the options.
    """
    pages = {path.stem: path for path in sorted(_folder().glob("*.md"))}
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    if topic is None:
        titles = [(name, _title(path)) for name, path in pages.items()]
        formatter = ctx.make_formatter()
        formatter.write_dl(titles)
        text = f"{formatter.getvalue()}\nShow one: moh-deploy help {next(iter(pages))}"
    elif topic in pages:
        text = _COMMENT.sub("", pages[topic].read_text(encoding="utf-8")).rstrip()
    elif topic in group.list_commands(ctx) and (command := group.get_command(ctx, topic)):
        text = command.get_help(click.Context(command, parent=ctx.parent, info_name=topic))
    else:
        hint = did_you_mean(topic, [*pages, *group.list_commands(ctx)])
        hint = hint or f"There are {', '.join(pages)}."
        raise click.UsageError(f"no page '{topic}'. {hint}", ctx)
    with writing_stdout():
        click.echo_via_pager(text)


def _folder() -> Path:
    """Return where the pages are: in the wheel, or beside the sources."""
    package = Path(__file__).parents[1]
    folders = (package / "docs", package.parent / "docs")
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().strip("# \n")
