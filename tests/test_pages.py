"""Commands that README and docs show exist, with their options; and calls fit functions."""

import ast
import inspect
import re
import shlex
from pathlib import Path

import click

import moh_deploy
from moh_deploy.cli import main
from tests.nightly import nightly

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def shown(page: str) -> list[list[str]]:
    """Return the words of each command of moh-deploy in the console blocks of a page."""
    lines = "\n".join(blocks(page, "console")).replace("\\\n", " ")
    commands = re.findall(r"^\$ moh-deploy (.*)$", lines, re.MULTILINE)
    return [shlex.split(re.split(r" [|>] ", command)[0], comments=True) for command in commands]


def problems(words: list[str]) -> list[str]:
    """Return the command, or its options, if they do not exist."""
    context = click.Context(main)
    command = main if words[0].startswith("-") else main.get_command(context, words[0])
    if command is None:
        return [f"no command {words[0]}"]
    known = {option for parameter in command.get_params(context) for option in parameter.opts}
    options = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return [f"{words[0]} {option}" for option in sorted(options - known)]


def test_commands_of_the_pages_and_their_options_exist():
    found = {
        (page.name, problem)
        for page in PAGES
        for words in shown(page.read_text())
        for problem in problems(words)
    }
    assert found == set()


@nightly  # it imports torch
def test_calls_of_moh_deploy_fit_its_functions():
    found = 0
    for page in PAGES:
        for block in blocks(page.read_text(), "python"):
            for call in filter(is_of_moh_deploy, ast.walk(ast.parse(block, page.name))):
                signature = inspect.signature(getattr(moh_deploy, call.func.attr))
                signature.bind(*call.args, **{given.arg: given for given in call.keywords})
                found += 1
    assert found > 5


def is_of_moh_deploy(node: ast.AST) -> bool:
    """Tell whether a node is a call such as `moh_deploy.verify(...)`."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="moh_deploy"))):
            return True
    return False


def test_python_of_the_pages_is_python():
    for page in PAGES:
        for block in blocks(page.read_text(), "python"):
            ast.parse(block, page.name)


def test_commands_are_read_with_their_options():
    page = "```console\n$ moh-deploy run a --to b \\\n      --outputs c    # --more\nresult\n```\n"
    assert shown(page) == [["run", "a", "--to", "b", "--outputs", "c"]]
    assert problems(["run", "a", "--inputz", "-x", "--inputs=1"]) == ["run --inputz", "run -x"]
    assert problems(["walk"]) == ["no command walk"]
