"""What users rely on, word by word: signatures, `--help`, and the forms of JSON.

A change that is meant is written down by `python -m tests.test_public_interface`.
"""

import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import click

import moh_deploy
from moh_deploy.cli import main
from moh_deploy.errors import MoHDeployError

FOLDER = Path(__file__).parent / "public_interface"
SCHEMAS = Path(__file__).parents[1] / "docs"


def _signatures() -> Iterator[str]:
    for name in sorted(moh_deploy.__all__):
        value = getattr(moh_deploy, name)
        yield f"{name}{inspect.signature(value)}"
        if inspect.isclass(value):
            yield from (
                f"    {name}.{member}{_signature(found)}"
                for member, found in sorted(vars(value).items())
                if not member.startswith("_")
            )


def _signature(member: object) -> str:
    function = getattr(member, "__func__", member)
    return str(inspect.signature(function)) if inspect.isfunction(function) else ""


def _exit_codes(error: type[MoHDeployError] = MoHDeployError) -> Iterator[str]:
    yield f"{error.__name__} {error.exit_code}"
    for more in sorted(error.__subclasses__(), key=lambda item: item.__name__):
        yield from _exit_codes(more)


def _help(name: str) -> str:
    with click.Context(
        main, info_name="moh-deploy", terminal_width=100, max_content_width=100
    ) as top:
        if not name:
            return main.get_help(top)
        command = main.get_command(top, name)
        with click.Context(
            command, parent=top, info_name=name, terminal_width=100, max_content_width=100
        ) as context:
            return command.get_help(context)


def interface() -> dict[str, str]:
    """Return the name of each file to what it holds."""
    files = {
        "signatures.txt": "\n".join(_signatures()),
        "exit_codes.txt": "\n".join(_exit_codes()),
        "schemas.txt": "\n".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.name}"
            for path in sorted(SCHEMAS.glob("*.schema.json"))
        ),
        "help.txt": _help(""),
    }
    with click.Context(main) as context:
        for name in main.list_commands(context):
            files[f"help-{name}.txt"] = _help(name)
    return {name: f"{text}\n" for name, text in files.items()}


def test_interface_is_as_it_was():
    assert interface() == {path.name: path.read_text() for path in FOLDER.iterdir()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in interface().items():
        (FOLDER / name).write_text(text)
