"""`moh-deploy build`, as a process of its own where it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.run_cli import REPOSITORY, Cli
from tests.cuda.trt import builds
from tests.nightly import nightly, one_in
from tests.runtime.tensorrt import stand_in
from tests.trt_packages import required_rtx, unknown_operators, write_changed


@pytest.fixture
def library() -> Path:
    required_rtx()
    return builds.plugin_on_fakes()


def _rtx(package: Path, library: Path) -> list[object]:
    output = package.parent / "engine"
    return ["build", package, "--backend", "tensorrt-rtx", "--output", output, "--plugin", library]


def test_several_compute_capabilities_and_profiles(cli: Cli, package: Path, library: Path):
    profiles = ["--profile", "batch=1..2..4", "--profile", "batch=4..8..16,seq=8"]
    command = [*_rtx(package, library), "--compute-capability", "8.6", "8.9", "12.0", *profiles]
    built = cli(*command, "--json")
    assert built.exit_code == 0, built.err
    assert built.json["compute_capabilities"] == ["8.6", "8.9", "12.0"]
    assert built.json["profiles"][1]["seq"] == {"min": 8, "opt": 8, "max": 8}
    assert [layer["moh_impl"] for layer in built.json["layers"]] == ["kernel"]
    again = cli(*command)
    assert again.exit_code == 0
    assert "NOTHING TO DO" in again.out


def test_refusals_end_with_6_and_are_in_the_report(
    cli: Cli, tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
):
    # What draws at random never equals what was recorded.
    monkeypatch.setattr("moh_deploy.derive.engine.require_equal", lambda package: None)
    package = write_changed(tmp_path / "coins", unknown_operators).root
    refused = cli(*_rtx(package, library), "--dry-run", "--json")
    assert refused.exit_code == 6
    assert [rejection["layer"] for rejection in refused.json["rejections"]] == [
        "coin",
        "second coin",
    ]
    assert refused.json["error"]["type"] == "BackendError"
    failed = cli(*_rtx(package, library))
    assert failed.exit_code == 6
    assert "error: TensorRT-RTX 1." in failed.err
    assert "- second coin: Bernoulli" in failed.err


def test_what_follows_the_values_of_an_option_is_not_one_of_them(cli: Cli, library: Path):
    failed = cli(*_rtx(Path("none"), library), "--compute-capability", "8.6", "8.9", "extra")
    assert failed.exit_code == 2
    assert "unexpected extra argument (extra)" in failed.err


def _start(command: list[object], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "moh_deploy", *map(str, command)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@nightly
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, -signal.SIGTERM, marks=nightly)],
    ids=str,
)
def test_a_build_that_is_stopped_leaves_nothing(
    package: Path,
    library: Path,
    tmp_path_factory: pytest.TempPathFactory,
    number: signal.Signals,
    code: int,
):
    folder = tmp_path_factory.mktemp("stand_in")
    started = folder / "started"
    environment = stand_in.environment(folder, STAND_IN=f"sleep {started}")
    command = _rtx(package, library)
    command[command.index("tensorrt-rtx")] = "tensorrt"
    with _start(command, environment) as process:
        _wait_for(started)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert [entry.name for entry in package.parent.iterdir()] == [package.name]
    _wait_until_gone(int(started.read_text()))


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline, "the build did not begin"
        time.sleep(0.02)


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the process that builds lives on"
        time.sleep(0.02)


@nightly
@pytest.mark.parametrize("kilobytes", one_in(2, [4, 64]))
def test_a_full_disk_leaves_nothing(package: Path, library: Path, kilobytes: int):
    """In the model that is lowered, and in the engine, which another process writes."""
    limit = kilobytes << 10
    code = (
        "import resource, sys; from moh_deploy.cli import main;"
        f" resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *map(str, _rtx(package, library)), "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert "disk full while writing" in json.loads(done.stdout)["error"]["message"]
    assert [entry.name for entry in package.parent.iterdir()] == [package.name]
