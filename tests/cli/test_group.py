from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from moh_deploy.cli import main
from tests.cli.run_cli import REPOSITORY, Cli, run_python, start_python
from tests.nightly import sampled

COMMANDS = sorted(main.list_commands(click.Context(main)))
HEAVY = {"numpy", "pydantic", "rich", "onnx", "onnxruntime", "torch", "yaml", "ml_dtypes"}


SHOW_EACH_HELP = """
import sys
from moh_deploy.cli import main
for name in sys.argv[1:]:
    main([*name.split(), "--help"], standalone_mode=False)
    print("IMPORTED", *sys.modules)
"""


def test_help_imports_nothing_heavy():
    shown = run_python("-c", SHOW_EACH_HELP, "", *COMMANDS)
    assert (shown.exit_code, shown.err) == (0, "")
    imported = re.findall("^IMPORTED (.*)$", shown.out, re.M)
    assert shown.out.count("Usage: moh-deploy") == len(imported) == 1 + len(COMMANDS)
    heavy = {
        name: HEAVY & set(of.split()) for name, of in zip(["", *COMMANDS], imported, strict=True)
    }
    assert not any(heavy.values()), heavy


def test_every_command_takes_json():
    assert [name for name in COMMANDS if "--json" not in _options(name)] == []


def _options(name: str) -> set[str]:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return {option for parameter in command.params for option in parameter.opts}


def test_what_reads_packages_never_imports_torch():
    modules = ["package", *(f"api.{name}" for name in COMMANDS if name != "export")]
    code = "import sys, importlib\nfor name in sys.argv[1:]:\n"
    code += "    importlib.import_module(f'moh_deploy.{name}')\n"
    code += "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')"
    ended = run_python("-c", code, *modules)
    assert (ended.exit_code, ended.err) == (0, "")


def test_help_lists_commands(cli: Cli):
    shown = cli("--help")
    assert shown.exit_code == 0
    assert all(f"  {name} " in shown.out for name in COMMANDS)


def test_version(cli: Cli):
    shown = cli("--version")
    assert (shown.exit_code, shown.out) == (0, "moh-deploy 0.1.0\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprt"], "No such command 'exprt'. Did you mean 'export'?"),
        (["zzz"], f"No such command 'zzz'. There are {', '.join(COMMANDS)}."),
        (["inspect"], "Missing argument 'DIR'"),
        (["run", "p", "--input", "x"], "--inputs"),
        (["verify", "p", "--kernels", "fast"], "'fast' is not one of"),
        (["export", "m.pt"], "Missing option '--output'"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_meant(
    cli: Cli, arguments: list[str], message: str
):
    failed = cli(*arguments)
    assert failed.exit_code == 2
    assert failed.out == ""
    assert failed.err.startswith("error: ")
    assert message in failed.err


def test_wrong_usage_is_json_too_where_asked_for(cli: Cli):
    error = cli("inspect", "--json").json["error"]
    assert (error["type"], error["exit_code"]) == ("UsageError", 2)
    assert error["hint"] == "See `moh-deploy inspect --help`."


def test_error_on_stderr_has_no_traceback(cli: Cli, tmp_path: Path):
    failed = cli("inspect", tmp_path)
    assert failed.exit_code == 5
    assert failed.err.splitlines() == [
        f"error: {tmp_path} is not a package: it has no manifest.json.",
        "hint: Make one with `moh-deploy export MODEL --output DIR`.",
    ]
    assert failed.out == ""


def test_package_with_an_edited_manifest_is_refused(cli: Cli, package: Path):
    path = package / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"seq_len": 3', '"seq_len": 4'))
    for command in ("inspect", "verify"):
        failed = cli(command, package)
        assert failed.exit_code == 5
        assert f"error: {path} has changed since the package was written" in failed.err
    assert cli("tune", package, "--choose", "all=dense").exit_code == 5
    path.write_text(text)
    assert cli("inspect", package).exit_code == 0


@pytest.mark.usefixtures("warm_processes")
@pytest.mark.parametrize("directory", ["package", "nowhere"])
def test_reader_that_goes_away_is_no_error(package: Path, directory: str):
    root = package if directory == "package" else package / directory
    with start_python("-m", "moh_deploy", "inspect", str(root), "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 141


def test_closed_stdout_is_no_bug(package: Path):
    command = f"{sys.executable} -m moh_deploy inspect {package} >&-"
    ended = subprocess.run(["sh", "-c", command], cwd=REPOSITORY, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")


@sampled(2)
@pytest.mark.usefixtures("warm_processes")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["for people", "json"])
@pytest.mark.parametrize("directory", ["package", "nowhere"])
def test_full_disk_behind_stdout_is_no_answer(package: Path, directory: str, options: list[str]):
    root = package if directory == "package" else package / directory
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "moh_deploy", "inspect", str(root), *options],
            cwd=REPOSITORY,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 5
    assert "Traceback" not in ended.stderr
    is_lost = directory == "package" or bool(options)
    assert ("error: stdout cannot be written: No space left on device" in ended.stderr) == is_lost


@pytest.mark.usefixtures("warm_processes")
def test_interrupt_that_a_module_makes_an_error_of_is_one():
    """An extension module that is interrupted while it is loaded raises ImportError."""
    code = "import sys, signal, moh_deploy.api.inspect as job; from moh_deploy.cli import main\n"
    code += "def load(*_, **__):\n    try: signal.raise_signal(signal.SIGINT)\n"
    code += "    except KeyboardInterrupt: raise ImportError('initialization failed')\n"
    code += "job.inspect = load; main(['inspect', 'package'])"
    process = start_python("-c", code)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "interrupted")


@sampled(3)
@pytest.mark.usefixtures("warm_processes")
@pytest.mark.parametrize("error", ["ValueError", "RecursionError", "MemoryError", "OSError"])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["for people", "json"])
def test_bug_keeps_its_traceback_and_is_no_answer(error: str, options: list[str]):
    code = "import moh_deploy.api.inspect as job; from moh_deploy.cli import main\n"
    code += f"def broken(*_, **__): raise {error}('planted')\n"
    code += f"job.inspect = broken; main(['inspect', 'package', *{options!r}])"
    ended = run_python("-c", code)
    assert (ended.exit_code, ended.out) == (70, "")
    assert "Traceback (most recent call last):" in ended.err
    assert f"{error}: planted\nerror: this is a bug of moh-deploy: {error} was" in ended.err


@pytest.mark.usefixtures("warm_processes")
def test_interrupted_process_ends_with_130_and_no_traceback():
    code = "import time, moh_deploy.api.inspect as job; from moh_deploy.cli import main\n"
    code += "def wait(*_, **__): print('ready', file=sys.stderr, flush=True); time.sleep(60)\n"
    code += "import sys; job.inspect = wait; main(['inspect', 'package'])"
    process = start_python("-c", code)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "interrupted")


@pytest.mark.parametrize("command", ["bisect", "build", "export", "inline", "precision", "prune"])
def test_output_has_a_short_form_wherever_something_is_written(cli: Cli, command: str):
    assert "-o, --output " in cli(command, "--help").out
