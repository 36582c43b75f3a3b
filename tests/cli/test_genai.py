"""Bundles for genai by `bundle` and `verify`: options of other servers are no options of theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from moh_deploy import native
from moh_deploy.serving.genai.bundle import write_genai_bundle
from tests.cli.run_cli import Cli
from tests.report.json_schema import validate
from tests.serving.genai.decoder_package import package


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
