"""Every fault in servers of their own, under load: minutes, so at night."""

from __future__ import annotations

from pathlib import Path

import pytest

from moh_deploy.api.drill import drill
from moh_deploy.serving.guard.faults import FAULTS
from tests.routed_package import write_routed
from tests.serving.triton.triton_environment import ENVIRONMENT, server_or_skip

pytestmark = pytest.mark.nightly


def test_moh_deploy_serve_holds_and_starts_a_killed_worker_again(tmp_path: Path):
    report = drill(write_routed(tmp_path / "package").root, clients=4, seconds=2.0)
    assert report.passed, report.reasons
    assert [one.fault for one in report.faults] == [*FAULTS, "kill"]
    killed = report.faults[-1]
    assert killed.wrong == 0
    assert killed.seconds_to_return is not None


def test_triton_holds_in_all_that_leaves_its_process_alive(tmp_path: Path):
    server_or_skip()
    package = write_routed(tmp_path / "package")
    report = drill(package.root, faults=FAULTS, clients=4, seconds=2.0, tritonserver=ENVIRONMENT)
    assert report.passed, report.reasons


def test_triton_does_not_start_a_killed_process_again_and_answers_nothing_wrong(tmp_path: Path):
    server_or_skip()
    package = write_routed(tmp_path / "package")
    report = drill(package.root, faults=["kill"], return_timeout=5.0, tritonserver=ENVIRONMENT)
    (killed,) = report.faults
    assert (killed.wrong, killed.seconds_to_return) == (0, None)
    assert "not healthy" in killed.failures[0]
