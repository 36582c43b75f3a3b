import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import pytest

from moh_deploy.cli import main
from tests.cli.run_cli import REPOSITORY, Cli, run_python, start_python
from tests.handmade_package import WIDTH, write_package
from tests.locked import lock
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
    return {option for parameter in command.params for option in parameter.opts}


def test_what_reads_packages_never_imports_torch():
    code = "import sys, moh_deploy, moh_deploy.package\nfor name in sys.argv[1:]:\n"
    code += "    getattr(moh_deploy, name)\n"
    code += "    if 'torch' in sys.modules: sys.exit(f'{name} imports torch')"
    ended = run_python("-c", code, *(name for name in COMMANDS if name != "export"))
    assert (ended.exit_code, ended.err) == (0, "")


def test_help_lists_commands(cli: Cli):
    shown = cli("--help")
    assert shown.exit_code == 0
    assert all(f"  {name} " in shown.out for name in COMMANDS)


def test_version(cli: Cli):
    shown = cli("--version")
    lines = shown.out.splitlines()
    assert (shown.exit_code, lines[0]) == (0, "moh-deploy 0.2.0")
    assert f"runtimes: ONNX Runtime {version('onnxruntime')}" in lines[3]
    assert lines[4:] == [f"export: PyTorch {version('torch')}"]


@pytest.mark.parametrize(
    ("library", "said"),
    [
        (None, "kernels: none (moh-deploy was built without CPU kernels: no cmake)"),
        ("broken.so", "kernels: none (the kernel library "),
    ],
)
def test_version_says_why_there_are_no_kernels(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str | None, said: str
):
    (tmp_path / "build.json").write_text('{"reason": "no cmake"}')
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setattr("moh_deploy.native.FOLDER", tmp_path)
    monkeypatch.setattr("moh_deploy.native.LIBRARY_NAME", library or "absent.so")
    assert cli("--version").out.splitlines()[2].startswith(said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprt"], "No such command 'exprt'. Did you mean 'export'?"),
        (["zzz"], f"No such command 'zzz'. There are {', '.join(COMMANDS)}."),
        (["inspect"], "Missing argument 'DIR'"),
        (["run", "p", "--input", "x"], "--inputs"),
        (["verify", "p", "--kernels", "fast"], "'fast' is not one of"),
        (["verify", "p", "--batch-size", "0"], "0 is not in the range"),
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
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, "", "interrupted")


@pytest.mark.parametrize("command", ["bisect", "build", "export", "inline", "precision", "prune"])
def test_output_has_a_short_form_wherever_something_is_written(cli: Cli, command: str):
    assert "-o, --output " in cli(command, "--help").out


# Paths below a directory that may not be entered: each command says so, and none is to blame.

_NO_PACKAGE = "locked/p cannot be opened as a package: Permission denied"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("bench locked/p", _NO_PACKAGE),
        ("bench package --baseline locked/p", _NO_PACKAGE),
        ("bundle locked/p -o out", _NO_PACKAGE),
        ("inline locked/p -o out.onnx", _NO_PACKAGE),
        ("inspect locked/p", _NO_PACKAGE),
        ("profile locked/p --inputs x.npz -o r.json", _NO_PACKAGE),
        ("run locked/p --inputs x.npz --outputs y.npz", _NO_PACKAGE),
        ("tune locked/p", _NO_PACKAGE),
        ("verify locked/p", _NO_PACKAGE),
        ("bench package --inputs locked/x.npz", "cannot be read as an npz file: Permission denied"),
        ("verify package --against locked/q", "against is locked/q, which is not found"),
    ],
)
def test_path_that_may_not_be_looked_up_is_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
):
    write_package(tmp_path / "package")
    (tmp_path / "locked").mkdir()
    monkeypatch.chdir(tmp_path)
    # Paths are looked up as they are given.
    lock(Path("locked"), monkeypatch)
    ended = cli(*command.split())
    assert message in ended.err
    assert ended.exit_code == 5 if message == _NO_PACKAGE else ended.exit_code in (2, 5)


# Names of files that are no text, too long, or lead nowhere.


NOT_TEXT = os.fsdecode(b"d\xff")


@pytest.fixture(params=[False, True], ids=["weights inside", "weights beside"])
def strange(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = write_package(tmp_path / "package", external_data=request.param).root
    folder = tmp_path / NOT_TEXT
    folder.mkdir()
    np.savez(folder / "in.npz", x=np.zeros((2, 3, WIDTH), np.float32))
    made.rename(folder / "package")
    return folder


def started(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a command in UTF-8, as on most machines: under the C locale every byte is text."""
    return subprocess.run(
        [sys.executable, "-m", "moh_deploy", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONUTF8": "1"},
        capture_output=True,
        check=False,
    )


@pytest.mark.usefixtures("warm_processes")
@sampled(8)
@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "package"),
        ("verify", "package", "--html", "a.html", "--markdown", "a.md", "--junit", "a.xml"),
        ("run", "package", "--inputs", "in.npz", "--outputs", "out.npz"),
        ("precision", "package", "--to", "float16", "--output", "half"),
        ("inline", "package", "--output", "flat.onnx"),
        ("tune", "package", "--choose", "all=dense"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_package_in_a_directory_whose_name_is_no_text_works(
    strange: Path, arguments: tuple[str, ...]
):
    files = {"package", "in.npz", "out.npz", "half", "flat.onnx", "a.html", "a.md", "a.xml"}
    named = [str(strange / argument) if argument in files else argument for argument in arguments]
    ended = started(*named)
    assert (ended.returncode, b"Traceback" in ended.stderr) == (0, False), ended.stderr
    assert all((strange / item).exists() for item in files & set(arguments))


@pytest.mark.usefixtures("warm_processes")
def test_name_that_is_no_text_is_shown_by_its_numbers(tmp_path: Path):
    ended = started("inspect", tmp_path / NOT_TEXT, "--json")
    assert ended.returncode == 5
    assert rb"d\udcff does not exist" in ended.stdout
    assert rb"d\udcff does not exist" in ended.stderr


@pytest.mark.usefixtures("warm_processes")
@pytest.mark.parametrize("option", [[], ["--html"], ["--policy"], ["--against"], ["--labels"]])
def test_name_that_no_file_can_have_is_wrong_usage(cli: Cli, package: Path, option: list[str]):
    long = package / ("x" * 300 + ".npz")
    failed = cli("verify", *([package] if option else []), *option, long)
    assert failed.exit_code == 2
    assert failed.err.startswith("error: ")
    assert "File name too long" in failed.err


@pytest.mark.usefixtures("warm_processes")
def test_link_that_leads_to_itself_is_wrong_usage(cli: Cli, package: Path, tmp_path: Path):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    for arguments in (
        ("inspect", loop),
        ("precision", package, "--to", "float16", "--output", loop),
        ("inline", package, "--output", loop),
        ("run", package, "--inputs", loop, "--outputs", tmp_path / "o.npz"),
        ("verify", package, "--html", loop / "a.html"),
    ):
        failed = cli(*arguments)
        assert failed.exit_code == 2, arguments
        assert "Too many levels of symbolic links" in failed.err
