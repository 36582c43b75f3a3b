"""A tuning that is stopped from outside, as a process of its own."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.cli.run_cli import start_python
from tests.kernel_library import required_library
from tests.nightly import sampled


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
