import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli.run_cli import Cli, start_python
from tests.handmade_package import write_package
from tests.kernel_library import required_library
from tests.nightly import nightly, sampled

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
    for item in (eager, plain):
        assert item["agreement"]["reason"] is None
        assert item["agreement"]["max_abs_error"] == 0.0
        assert item["load_ms"] > 0
        assert item["first_run_ms"] > 0
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


# A tuning that is stopped from outside, as a process of its own.


@sampled(2)
@pytest.mark.usefixtures("warm_processes")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)], ids=str
)
def test_tuning_that_is_stopped_leaves_the_package_and_nothing_else(
    package: Path, number: signal.Signals, code: int
):
    required_library()
    before = {file.name: file.read_bytes() for file in package.iterdir()}
    command = ["-m", "moh_deploy", "tune", str(package), "--min-time", "3600"]
    with start_python(*command) as process:
        _wait_until_measuring(package)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert [entry.name for entry in package.parent.iterdir()] == [package.name]
    assert {file.name: file.read_bytes() for file in package.iterdir()} == before


def _wait_until_measuring(package: Path) -> None:
    deadline = time.monotonic() + 60
    while not list(package.parent.glob(".*/layer.onnx")):
        assert time.monotonic() < deadline, "the tuning did not begin"
        time.sleep(0.02)


# `moh-deploy tune --within`: what goes together, and what does not.


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
    tried = {item["way"]["name"]: item for item in shown.json["tried"]}
    assert {item["ending"] for item in tried.values()} >= {"chosen", "could not run"}
    int8 = tried["int8 in ONNX Runtime"]
    assert (int8["ending"], "no product that could be in int8" in int8["reason"]) == (
        "could not run",
        True,
    )
