import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.errors import BackendError
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.drill.targets import Ask, HttpServer, Target
from moh_deploy.serving.guard.guard_io import Control, write_control
from tests.nightly import nightly

POLICY = "rungs: [{kind: functions, name: first}, {kind: functions}]\ncool_down: {first_s: 100}"


@pytest.fixture(scope="module")
def target(package: OnnxPackage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "policy.yaml").write_text(POLICY)
    with HttpServer(PackageDir(package.root), folder / "policy.yaml", folder) as target:
        yield target


@pytest.fixture
def ask(target: Target) -> Ask:
    return target.connect()


def test_a_server_answers_and_says_which_rung_it_was(ask: Ask, package: OnnxPackage):
    recorded = package.vectors[0]
    for _ in range(2):  # by one connection
        answer = ask(recorded.inputs)
        assert answer.rung == "first"
        np.testing.assert_allclose(answer.outputs["y"], recorded.outputs["y"], rtol=1e-5, atol=1e-6)


def test_what_the_server_refuses_is_an_error(ask: Ask):
    with pytest.raises(BackendError, match=r"status 400: .*with 2 axes"):
        ask({"x": np.zeros((1, 2), np.float32)})


def test_ctrl_c_in_the_terminal_of_the_drill_does_not_reach_the_server(target: Target):
    assert isinstance(target, HttpServer)
    assert os.getpgid(target.process.pid) == target.process.pid != os.getpgid(0)


def test_a_worker_is_killed_and_the_next_one_answers(
    target: Target, ask: Ask, package: OnnxPackage
):
    x = package.vectors[0].inputs
    ask(x)
    assert target.kill_worker()
    with pytest.raises(BackendError, match="no answer"):
        ask(x)
    assert ask(x).rung == "first"


def test_a_fault_is_planted_by_the_control_file(target: Target, ask: Ask, package: OnnxPackage):
    recorded = package.vectors[0]
    write_control(target.control, Control(faults=("nan",)))
    rung = "first"
    while rung == "first":
        answer = ask(recorded.inputs)
        np.testing.assert_allclose(answer.outputs["y"], recorded.outputs["y"], rtol=1e-5, atol=1e-6)
        rung = answer.rung
    assert rung == "functions"
    assert "non-finite outputs" in target.audit_log.read_text()
    write_control(target.control, Control())


@nightly
def test_a_rung_that_took_the_worker_along_does_not_serve_in_the_next(
    target: Target, ask: Ask, package: OnnxPackage
):
    x = package.vectors[0].inputs
    assert target.kill_worker()  # whatever an earlier test has left: the next one begins anew
    assert ask(x).rung == "first"
    write_control(target.control, Control(faults=("slow",)))
    while _seconds(lambda: ask(x)) < 0.25:
        pass
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask, x)
        time.sleep(0.1)
        assert target.kill_worker()
        with pytest.raises(BackendError, match="no answer"):
            running.result()
    write_control(target.control, Control())
    assert ask(x).rung == "functions"
    assert "process died" in target.audit_log.read_text()


def _seconds(call: Callable[[], object]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


@pytest.mark.nightly
def test_a_server_that_does_not_start_says_why(package: OnnxPackage, tmp_path: Path):
    (tmp_path / "policy.yaml").write_text("rungs: []")
    with pytest.raises(BackendError, match=r"did not start: (.|\n)*rungs"):
        HttpServer(PackageDir(package.root), tmp_path / "policy.yaml", tmp_path)
