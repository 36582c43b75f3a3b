"""bisect as a user calls it."""

from __future__ import annotations

from pathlib import Path

from tests.cli.run_cli import Cli
from tests.half_packages import write_unprotected
from tests.handmade_package import write_package
from tests.nightly import nightly
from tests.report.json_schema import validate


def test_nothing_diverges(cli: Cli, package: Path):
    shown = cli("bisect", package)
    assert (shown.exit_code, shown.err) == (0, "")
    assert shown.out.startswith("NOTHING DIVERGES from the vectors recorded from")
    content = cli("bisect", package, "--json").json
    assert (content["diverges"], content["divergence"], content["repair"]) == (False, None, None)


def test_divergence_ends_with_1_and_says_where(cli: Cli, package: Path, tmp_path: Path):
    wrong = write_package(tmp_path / "wrong", scale=2.0).root
    shown = cli("bisect", wrong, "--reference", package, "--kernels", "off")
    assert shown.exit_code == 1
    assert "First diverges at Mul 'scaled'" in shown.out
    assert shown.err.startswith("error: first diverges at Mul 'scaled' in 'blocks.0.attn'")
    failed = cli("bisect", wrong, "--reference", package, "--json", "--kernels", "off")
    assert failed.exit_code == 1
    found = failed.json["divergence"]
    assert (found["cause"], found["node"]["node"]) == ("graph", "scaled")
    assert found["differences"] == ["weight 'scale' differs by up to 1 of its largest value"]
    assert failed.json["error"]["type"] == "ValidationError"
    validate("bisect", failed.json)


def test_suspects_are_listed_without_a_reference(cli: Cli, tmp_path: Path):
    wrong = write_package(tmp_path / "wrong", scale=2.0).root
    failed = cli("bisect", wrong, "--kernels", "off")
    assert failed.exit_code == 1
    assert "nodes that may be wrong" in failed.out
    assert "one of 2 nodes: MoHAttention 'blocks.0.attn/moh'" in failed.err


@nightly
def test_repaired_package_ends_with_0(cli: Cli, tmp_path: Path):
    whole = write_package(tmp_path / "whole")
    half = write_unprotected(whole, tmp_path / "half", stays=lambda node: False).root
    options = ["--target", "1e-6", "--reference", whole.root]
    failed = cli("bisect", half, *options)
    assert failed.exit_code == 1
    assert "hint: Write the repaired package with --output DIR." in failed.err
    validate("bisect", cli("bisect", half, *options, "--json").json)
    shown = cli("bisect", half, *options, "--output", tmp_path / "out")
    assert (shown.exit_code, shown.err) == (0, "")
    assert "has to be in float32" in shown.out
    assert "REPAIRED: passes verify" in shown.out
    content = cli("bisect", tmp_path / "out", "--target", "1e-6", "--json").json
    assert content["diverges"] is False


def test_wrong_options_end_with_2(cli: Cli, package: Path, tmp_path: Path):
    failed = cli("bisect", package, "--target", "2")
    assert (failed.exit_code, failed.err.count("target is 2.0, expected a share")) == (2, 1)
    failed = cli("bisect", package, "--output", tmp_path / "out")
    assert (failed.exit_code, failed.err.count("there is nothing to put into float32")) == (2, 1)
    assert cli("bisect", tmp_path / "none").exit_code == 5
