from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli.run_cli import Cli
from tests.handmade_package import write_package
from tests.nightly import nightly

pytestmark = pytest.mark.usefixtures("warm_processes")

CODE = """
from torch import nn


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(nn.init.ones_(nn.Linear(1, 1).weight)[0].clone())

    def forward(self, x):
        print("the user's model prints")
        return x * self.scale
"""
BENCH = ("--threads", "1", "--min-time", "0s", "--warmup", "0ms")


@pytest.fixture
def original(tmp_path: Path) -> Iterator[list[object]]:
    """The options that name an original which computes y = x."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "user_scaled.py").write_text(CODE)
    torch.save({"scale": nn.Parameter(torch.ones(1))}, tmp_path / "weights.pt")
    path, modules = list(sys.path), set(sys.modules)
    loading = ["--factory", "user_scaled:Scaled", "--code-dir", tmp_path / "code"]
    yield ["--checkpoint", tmp_path / "weights.pt", *loading]
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("user_"):
            del sys.modules[name]


@nightly
def test_original_and_its_plain_export_are_measured(
    cli: Cli, original: list[object], tmp_path: Path
):
    package = write_package(tmp_path / "package", with_layer=False).root
    baselines = ["--baseline", "eager", "--baseline", "plain-onnx"]
    content = cli("bench", package, *baselines, *original, *BENCH, "--json").json
    eager, plain = content["results"][1:]
    assert (eager["contestant"], plain["contestant"]) == ("eager", "plain-onnx")
    for one in (eager, plain):
        assert one["agreement"]["reason"] is None
        assert one["agreement"]["max_abs_error"] == 0.0
        assert one["load_ms"] > 0
        assert one["first_run_ms"] > 0
    assert eager["peak_memory_bytes"] > plain["peak_memory_bytes"]
    assert set(content["results"][0]["ratios"]) == {"eager", "plain-onnx"}


def test_options_of_an_original_need_its_checkpoint(
    cli: Cli, original: list[object], tmp_path: Path
):
    package = write_package(tmp_path / "package", with_layer=False).root
    refused = cli("bench", package, "--code-dir", tmp_path, *BENCH)
    assert (refused.exit_code, refused.out) == (2, "")
    assert "--code-dir says how a checkpoint is loaded, but there is no" in refused.err
    absent = cli("bench", package, "--baseline", "eager", *BENCH)
    assert (absent.exit_code, absent.out) == (2, "")
    assert "hint: Name its checkpoint: --checkpoint FILE" in absent.err
    gone = cli(
        "bench", package, "--baseline", "eager", "--checkpoint", tmp_path / "gone.pt", *BENCH
    )
    assert gone.exit_code == 3
    assert "gone.pt" in gone.err
