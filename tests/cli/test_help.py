"""What leads users who have nothing but the command line: help, its examples, and completion."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

from moh_deploy.cli import main
from moh_deploy.cli.command import Command
from moh_deploy.validate.accuracy.task import BUILT_IN_METRICS
from tests.cli.run_cli import REPOSITORY, Cli
from tests.help_examples import example_lines

TOP = click.Context(main, info_name="moh-deploy")
COMMANDS = sorted(main.list_commands(TOP))
PAGES = {path.stem for path in (REPOSITORY / "docs").glob("*.md")}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_parses_and_a_page(name: str):
    command = main.get_command(TOP, name)
    assert isinstance(command, Command)
    assert command.page in PAGES
    lines = example_lines(command)
    assert lines
    for program, called, *arguments in lines:
        assert (program, called) == ("moh-deploy", name)
        command.make_context(name, arguments, parent=TOP)
    # They are copied from a terminal of 80 columns.
    assert max(map(len, command.example.splitlines())) <= 78


def _headings(text: str) -> Iterator[tuple[str, list[str]]]:
    for section in re.split(r"\n\n", text):
        heading, *lines = section.splitlines()
        yield heading, [line.split()[0] for line in lines if re.match("  [a-z]+  ", line)]


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_main_path_comes_first_and_families_in_their_order(cli: Cli, arguments: list[str]):
    ended = cli(*arguments)
    assert ended.exit_code == (0 if arguments else 2)
    text = ended.out if arguments else ended.err
    assert text.startswith("Usage: moh-deploy")
    assert "error:" not in text
    assert "hint:" not in text
    sections = dict(_headings(text))
    assert [*sections][2] == "From a model to its answers:"
    path = ["optimize", "export", "verify", "bench", "run"]
    registered = [name for name in path if name in COMMANDS]
    assert sections["From a model to its answers:"] == registered
    assert sections["Serve:"] == ["serve", "bundle", "profile", "watch", "drill"]
    listed = [name for names in sections.values() for name in names]
    assert sorted(listed) == COMMANDS


def test_loading_options_are_shown_once_asked_for(cli: Cli):
    for name in ("bench", "generate", "probe", "verify"):
        assert "--state-key" not in cli(name, "--help").out
        shown = cli(name, "--help-loading")
        assert (shown.exit_code, shown.err) == (0, "")
        assert len(re.findall("^  --", shown.out, re.M)) == 9
    assert "--state-key" in cli("export", "--help").out


def test_topics_are_pages_or_commands(cli: Cli):
    page = (REPOSITORY / "docs" / "verify.md").read_text().splitlines()
    shown = [line for line in page if not line.startswith("<!-- ")]
    assert len(shown) < len(page)
    assert cli("help", "verify").out.splitlines() == shown
    assert cli("help", "run").out.startswith("Example:\n  moh-deploy run ")
    listed = cli("help").out
    assert all(f"{page} " in listed for page in PAGES)
    unknown = cli("help", "verfy")
    assert (unknown.exit_code, unknown.out) == (2, "")
    assert "no page 'verfy'. Did you mean 'verify'?" in unknown.err


def test_messages_name_pages_that_there_are():
    """`docs/x.md` is a path of the repository, which users of a wheel do not have."""
    for path in (REPOSITORY / "moh_deploy").rglob("*.py"):
        for page in re.findall(r"moh-deploy help ([a-z-]+)", path.read_text()):
            assert page in PAGES, path


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("precision p --to ", {"float16", "bfloat16", "int8", "int4"}),
        ("precision p --to in", {"int8", "int4"}),
        ("verify p --kernels ", {"auto", "off", "require"}),
        ("verify p --against fun", {"functions"}),
        ("bench p --baseline e", {"eager"}),
        ("build p --precision b", {"bfloat16"}),
        ("drill p --fault g", {"gates"}),
        ("verify p --metric top", {"top-1", "top-5"}),
        ("compare p q --metric ", {*BUILT_IN_METRICS}),
        ("dri", {"drill"}),
        ("--install-completion z", {"zsh"}),
    ],
)
def test_choices_are_completed(typed: str, offered: set[str]):
    *arguments, incomplete = typed.split(" ")
    found = ShellComplete(main, {}, "moh-deploy", "_X").get_completions(arguments, incomplete)
    assert {item.value for item in found if item.type == "plain"} == offered


@pytest.mark.parametrize(
    ("shell", "script", "settings"),
    [
        ("bash", ".local/share/moh-deploy/complete.bash", ".bashrc"),
        ("zsh", ".local/share/moh-deploy/complete.zsh", ".zshrc"),
        ("fish", ".config/fish/completions/moh-deploy.fish", None),
    ],
)
def test_completion_is_installed_once(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shell: str,
    script: str,
    settings: str | None,
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    if settings is not None:
        (tmp_path / settings).write_text("alias l=ls")  # without a new line at its end
    for arguments in (["--install-completion"], ["--install-completion", shell]):
        done = cli(*arguments)
        assert (done.exit_code, done.err) == (0, "")
        assert str(tmp_path / script) in done.out
    assert f"_MOH_DEPLOY_COMPLETE={shell}_complete" in (tmp_path / script).read_text()
    if settings is not None:
        alias, line = (tmp_path / settings).read_text().splitlines()
        assert alias == "alias l=ls"
        assert shlex.split(line, comments=True) == [".", str(tmp_path / script)]
    if shell == "bash":
        code = f". {tmp_path / '.bashrc'}; complete -p moh-deploy"
        told = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert told.stdout.startswith("complete ")


def test_unknown_shell_is_refused(cli: Cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    refused = cli("--install-completion")
    assert refused.exit_code == 2
    assert "the shell is 'tcsh' (SHELL), expected bash, zsh, fish" in refused.err
