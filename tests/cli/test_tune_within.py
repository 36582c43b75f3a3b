"""`moh-deploy tune --within`: what goes together, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.run_cli import Cli
from tests.handmade_package import write_package


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "fast"), "--output is of --within, which is not given"),
        (("--labels", "labels.npy"), "--labels is of --within"),
        (("--batch-size", "2"), "--batch-size is of --within"),
        (("--within", "parity", "--choose", "all=dense"), "--choose says how layers run"),
        (("--within", "p50 <= 1", "--dry-run"), "there is no metric 'p50'"),
        (("--within", "parity"), "there is no output"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], message: str
):
    write_package(tmp_path / "package")
    before = (tmp_path / "package" / "manifest.json").read_bytes()
    refused = cli("tune", tmp_path / "package", *arguments, "--json")
    assert refused.exit_code == 2
    assert message in refused.json["error"]["message"]
    assert (tmp_path / "package" / "manifest.json").read_bytes() == before


@pytest.mark.nightly
def test_what_was_tried_is_in_the_answer(cli: Cli, tmp_path: Path):
    write_package(tmp_path / "package")  # of which nothing can be in int8
    shown = cli(
        *("tune", tmp_path / "package", "--within", "flips <= 50 %", "--runtime", "onnxruntime"),
        *("--min-time", "0ms", "--dry-run", "--json"),
    )
    assert shown.exit_code == 0, shown.err
    tried = {one["way"]["name"]: one for one in shown.json["tried"]}
    assert {one["ending"] for one in tried.values()} >= {"chosen", "could not run"}
    int8 = tried["int8 in ONNX Runtime"]
    assert (int8["ending"], "no product that could be in int8" in int8["reason"]) == (
        "could not run",
        True,
    )
