import shlex
import subprocess
from pathlib import Path

import pytest

from moh_deploy import native
from moh_deploy.serving.genai.bundle import write_genai_bundle
from moh_deploy.serving.triton import check
from tests.cli.run_cli import Cli
from tests.report.json_schema import validate
from tests.serving.genai.decoder_package import package


def test_bundle_is_written_and_checked(cli: Cli, package: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(check, "find_server", lambda given: None)  # whatever this machine has
    root = tmp_path / "bundle"
    shown = cli("bundle", package, "-o", root, "--name", "digits", "--instances", "2")
    assert (shown.exit_code, shown.err) == (0, "")
    assert "digits, version 1" in shown.out
    checked = cli("bundle", "--check", root, "--json")
    assert checked.exit_code == 0
    assert {finding["is_good"] for finding in checked.json["findings"]} <= {True, None}


def test_printed_lines_run_as_they_are_printed(
    cli: Cli, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(check, "find_server", lambda given: None)  # whatever this machine has
    root, program = tmp_path / f"{'long ' * 30}$name's", tmp_path / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/given\n')
    program.chmod(0o755)
    lines = cli("bundle", package, "-o", root).out.splitlines()
    start, checks = (line.partition(": ")[2] for line in lines[-2:])
    subprocess.run(["/bin/sh", "-c", start], check=True, env={"PATH": str(program.parent)})
    assert (tmp_path / "given").read_text() == f"--model-repository={root / 'repository'}\n"
    _, *arguments = shlex.split(checks)
    assert cli(*arguments).exit_code == 0


def test_bundle_that_no_server_would_load_ends_with_5(cli: Cli, package: Path, tmp_path: Path):
    root = tmp_path / "bundle"
    cli("bundle", package, "-o", root, "--name", "digits")
    (root / "repository/digits/1/model.py").unlink()
    checked = cli("bundle", "--check", root)
    assert checked.exit_code == 5
    assert "A SERVER WOULD NOT LOAD IT" in checked.out
    assert "model.py: is missing" in checked.err
    assert "hint: Copy the bundle again" in checked.err


def test_writing_and_checking_are_not_mixed(cli: Cli, package: Path, tmp_path: Path):
    for arguments, message in (
        (["--check", tmp_path, package], "--check takes a bundle alone"),
        ([package], "name a package or engine DIR and --output"),
        ([package, "-o", tmp_path / "b", "--server", tmp_path], "--server is for --check"),
    ):
        shown = cli("bundle", *arguments)
        assert (shown.exit_code, message in shown.err) == (2, True), shown.err


# Bundles for genai by `bundle` and `verify`: options of other servers are no options of theirs.


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(native, "kernel_library", lambda: None)
    files = {"tokenizer.json": "{}", "tokenizer_config.json": "{}"}
    write_genai_bundle(package(tmp_path / "p", files), tmp_path / "b")
    return tmp_path / "b"


def test_options_of_triton_are_refused(cli: Cli, bundle: Path, tmp_path: Path):
    command = ["bundle", tmp_path / "p", "--target", "genai", "-o", tmp_path / "no"]
    for arguments in (["--instances", "2"], ["--guard", "default"]):
        shown = cli(*command, *arguments)
        assert shown.exit_code == 2
        assert f"--target genai takes no {arguments[0]}" in shown.err
    assert not (tmp_path / "no").exists()


def test_options_of_packages_are_refused(cli: Cli, bundle: Path):
    shown = cli("verify", bundle, "--kernels", "off")
    assert shown.exit_code == 2
    assert "a bundle for genai takes no --kernels" in shown.err


def test_several_references_are_refused(cli: Cli, bundle: Path):
    shown = cli("verify", bundle, "--against", "a", "--against", "b")
    assert shown.exit_code not in (0, 1)
    assert "--against is given 2 times" in shown.err


def test_bundle_that_has_changed_is_an_error_of_the_schema(cli: Cli, bundle: Path):
    (bundle / "genai_config.json").write_text("{}")
    shown = cli("verify", bundle, "--json")
    assert shown.exit_code == 5
    validate("verify-genai", shown.json)
    assert "has changed since the bundle was written" in shown.json["error"]["message"]
