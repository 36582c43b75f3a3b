"""Collect the pages of the site in a folder, as MkDocs reads them: `make docs`.

python tools/site_pages.py FOLDER

Pages and the files that they link to keep their paths in the repository, so a link that is right
there is right on the site (ADR 129). Two pages are made here: the options of every command, and the
Python API.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click
from click.testing import CliRunner

import moh_deploy
from moh_deploy.cli import main as moh_deploy_command

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^()\s#:]+)(?:#[^)]*)?\)")
WIDTH = 100  # of the help of commands, in characters


def main(folder: Path) -> None:
    """Write the pages, and the files that they link to, into a folder of this program's own."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in linked_files([*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.*"))]):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (folder / "docs" / "options.md").write_text(options_page())
    (folder / "docs" / "api.md").write_text(api_page())


def linked_files(waiting: list[Path]) -> Iterator[Path]:
    """Yield the files, and all that their pages link to; MkDocs reports links to none."""
    seen = set[Path]()
    while waiting:
        path = waiting.pop().resolve()
        if path in seen or not path.is_file() or not path.is_relative_to(ROOT):
            continue
        seen.add(path)
        yield path
        if path.suffix == ".md":
            links = LINK.findall(path.read_text(encoding="utf-8"))
            waiting += [path.parent / unquote(link) for link in links]


def options_page() -> str:
    """Return the page of every command's `--help`, with the options that other options show."""
    page = [
        "# Command line options\n",
        "The `--help` of each command. [Commands](commands.md) groups them by task.\n",
    ]
    context = click.Context(moh_deploy_command)
    for name in sorted(moh_deploy_command.list_commands(context)):
        command = moh_deploy_command.get_command(context, name)
        assert command is not None, name
        flags = [
            option.opts[0]
            for option in command.get_params(context)
            if isinstance(option, click.Option) and option.is_eager and option.name != "help"
        ]
        page.append(f"## {name}\n")
        page += [f"```text\n{shown(name, flag).strip()}\n```\n" for flag in ("--help", *flags)]
    return "\n".join(page)


def shown(*arguments: str) -> str:
    """Return the output of a `moh-deploy` command line."""
    result = CliRunner().invoke(
        moh_deploy_command, arguments, prog_name="moh-deploy", terminal_width=WIDTH
    )
    if result.exit_code != 0:
        raise RuntimeError(f"moh-deploy {' '.join(arguments)} failed: {result.output}")
    return result.stdout


def api_page() -> str:
    """Return the page of the public functions and classes, for mkdocstrings to fill."""
    return "\n\n".join(
        [
            "# Python API",
            "Each command is a function of `moh_deploy`. Errors are of `moh_deploy.errors`.",
            *(f"::: moh_deploy.{name}" for name in sorted(dir(moh_deploy), key=str.lower)),
        ]
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
