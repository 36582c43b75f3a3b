"""Each block of README and docs is run by tests, or says why not; commands and options exist."""

import ast
import re
import shlex
from collections import Counter

import click
import pytest

from moh_deploy.cli import main
from tests.pages.blocks import PAGES, Block, Command, Mark, all_blocks, blocks

LANGUAGES = {"console", "cpp", "csv", "dockerfile", "json", "python", "text", "toml"}
LANGUAGES |= {"yaml"}
# Why blocks, or commands of them, are not run by `test_run.py`, and how many. Another reason, or
# another block, has to be let in here.
NOT_RUN = {
    "changes the installation": 1,
    "installs packages": 13,  # tests/first_hour runs those of README and quickstart
    "is a part of a command": 1,
    "is a test itself": 6,
    "is the reader's own program": 1,
    "needs Docker": 1,
    "needs TensorRT": 9,
    "needs Triton": 7,
    "needs a GPU": 5,
    "needs a cluster": 1,
    "needs a quiet machine": 2,  # a disturbed measurement is refused, and nights are not quiet
    "needs a server for drills": 1,
    "needs a window that a server recorded": 1,
    "needs nvcc": 4,
    "needs root": 4,
    "needs the published code": 3,
    "needs the repository's address": 1,
    "runs until it is stopped": 1,
    "takes too long": 8,
}
# `make clean` would be as bad: a page runs in links to the sources.
INSTALLS = re.compile(r"(sudo|apt|apt-get|docker|git|make|npm|pip|\S*python3? -m pip)\b")


def unrun() -> list[tuple[Block, Mark]]:
    return [(block, mark) for block in all_blocks() for mark in block.marks if mark.kind == "skip"]


def test_what_is_not_run_says_why():
    assert Counter(mark.reason for _, mark in unrun()) == NOT_RUN


def test_what_installs_or_downloads_is_not_run():
    found = [
        (block.place, command.line)
        for block in all_blocks()
        for command in block.commands
        if INSTALLS.match(command.line) and not block.marked("skip", command.line)
    ]
    assert found == []


def test_every_block_is_of_a_language_that_is_run_or_shown():
    found = [block.place for block in all_blocks() if block.language not in LANGUAGES]
    assert found == []


def test_no_fence_is_left_open_and_no_command_is_outside_of_a_fence():
    for page in PAGES:
        text = page.read_text()
        fences = len(re.findall(r"^ *```", text, re.MULTILINE))
        assert fences == 2 * len(blocks(text)), page
        commands = len(re.findall(r"^ *\$ ", text, re.MULTILINE))
        fenced = [block for block in blocks(text) if block.language == "console"]
        assert commands == sum(len(block.commands) for block in fenced), page


def test_every_console_block_has_a_command():
    found = [block for block in all_blocks() if block.language == "console"]
    assert [block.place for block in found if not block.text.startswith("$ ")] == []


def test_marks_are_of_a_block_and_of_commands_in_it():
    comments = sum(
        len(re.findall(r"^ *<!-- (?!/?generated)", page.read_text(), re.M)) for page in PAGES
    )
    assert comments == sum(len(block.marks) for block in all_blocks())
    lost = [
        (block.place, mark.words)
        for block in all_blocks()
        for mark in block.marks
        if not any(mark.words in command.line for command in block.commands or [Command("", "")])
    ]
    assert lost == []


def problems(line: str) -> list[str]:
    """Return what a command of moh-deploy names that does not exist: itself, or its options."""
    words = shlex.split(re.split(r" [|>] ", line)[0], comments=True)
    context = click.Context(main)
    command = main if words[1].startswith("-") else main.get_command(context, words[1])
    if command is None:
        return [f"no command {words[1]}"]
    known = {option for parameter in command.get_params(context) for option in parameter.opts}
    options = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    return [f"{words[1]} {option}" for option in sorted(options - known)]


def test_commands_of_the_pages_and_their_options_exist():
    found = {
        (block.place, problem)
        for block in all_blocks()
        if block.language == "console"
        for command in block.commands
        if command.line.startswith("moh-deploy ") and " ... " not in command.line
        for problem in problems(command.line)
    }
    assert found == set()


def test_python_of_the_pages_is_python():
    for block in all_blocks():
        if block.language == "python":
            ast.parse(block.text, block.place)


PAGE = """
<!-- skip 'sudo': needs root -->
```console
$ sudo apt install b
$ moh-deploy run a --to b \\
      --outputs c    # --more
result
$ echo 'of two
lines'
```

<!-- file: plan.yaml -->
```yaml
a: 1
```
  ```python
  # models.py
  print(1)
  ```
  ```text
  1
  ```
"""


def test_commands_are_read_with_their_lines_and_marks():
    console, yaml, python, text = blocks(PAGE, "page")
    assert [command.printed for command in console.commands] == ["", "result\n", ""]
    assert console.commands[1].line == "moh-deploy run a --to b \\\n      --outputs c    # --more"
    assert console.commands[2].line == "echo 'of two\nlines'"
    assert console.marked("skip", console.commands[0].line) == "needs root"
    assert not console.marked("skip", console.commands[1].line)
    assert console.place == "page:3"
    assert (yaml.file, python.file, text.file) == ("plan.yaml", "models.py", "")
    assert python.text == "# models.py\nprint(1)\n"
    assert (python.follows, text.follows) == ("yaml", "python")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("run a --to b \\\n --outputs c", ["run --to"]),
        ("run a --inputz -x --inputs=1", ["run --inputz", "run -x"]),
        ("walk", ["no command walk"]),
        ("verify a --json > b --c", []),
    ],
)
def test_what_does_not_exist_is_found(line: str, found: list[str]):
    assert problems(f"moh-deploy {line}") == found
