from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError, PackageError
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.api.bundle import bundle
from moh_deploy.serving.api.drill import drill
from moh_deploy.serving.drill.targets import DRILLED_NAME, HttpServer
from moh_deploy.serving.genai.bundle import write_genai_bundle
from moh_deploy.serving.guard.guard_io import FAULTS
from tests.handmade_package import write_package
from tests.nightly import nightly
from tests.routed_package import write_routed
from tests.serving.genai import decoder_package
from tests.serving.triton.triton_environment import ENVIRONMENT, server_or_skip

QUICK = "rungs: [{kind: functions, name: first}, {kind: functions}]\ncool_down: {first_s: 0.5}"
SHORT = {"seconds": 0.3, "clients": 2, "in_process": True}


@nightly
def test_a_drill_in_this_process_holds_and_says_what_clients_saw(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    report = drill(package.root, faults=["nan", "crash", "missing-library", "drift"], **SHORT)
    assert report.passed, report.reasons
    assert report.before.requests > 0
    assert [fault.fault for fault in report.faults] == ["nan", "crash", "missing-library", "drift"]
    for fault in report.faults[:3]:
        assert (fault.outcome, fault.wrong, fault.failed) == ("held", 0, 0)
        assert fault.moved
        assert fault.seconds_to_return is not None
        assert len(fault.served) == 2
    assert report.faults[3].reason == "drift"


@nightly
def test_wrong_finite_answers_get_out_until_a_spot_check_finds_them(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    (wrong,) = drill(package.root, faults=["wrong"], **SHORT).faults
    assert wrong.outcome == "cannot be seen"
    assert wrong.wrong > 0
    assert wrong.reason == "other answers"


def test_a_policy_that_sees_nothing_of_it_does_not_hold(tmp_path: Path):
    package = write_package(tmp_path / "package")
    (tmp_path / "policy.yaml").write_text("rungs: [{kind: functions}, {kind: dense}]")
    report = drill(
        package.root,
        faults=["slow"],
        policy=tmp_path / "policy.yaml",
        trip_timeout=0.5,
        return_timeout=1.0,
        **SHORT,
    )
    assert not report.passed
    assert "slow: the guard did not notice it" in str(report.failure)


@nightly
def test_the_policy_of_a_bundle_is_drilled(tmp_path: Path):
    package = write_package(tmp_path / "package")
    (tmp_path / "policy.yaml").write_text(QUICK)
    bundle(package.root, tmp_path / "bundle", name="m", guard=tmp_path / "policy.yaml")
    report = drill(tmp_path / "bundle", faults=["nan"], **SHORT)
    assert report.passed, report.reasons
    assert report.before.served.keys() == {"first"}
    assert report.policy == str(tmp_path / "bundle" / "guard" / "policy.yaml")


def test_a_bundle_for_genai_is_not_read_as_one_for_triton(tmp_path: Path):
    files = {"tokenizer.json": "{}", "tokenizer_config.json": "{}"}
    write_genai_bundle(decoder_package.package(tmp_path / "package", files), tmp_path / "bundle")
    with pytest.raises(PackageError) as refused:
        drill(tmp_path / "bundle", **SHORT)
    assert "has changed" not in refused.value.message


@pytest.mark.nightly
def test_a_server_that_runs_is_drilled_by_its_files(tmp_path: Path):
    package = write_package(tmp_path / "package")
    (tmp_path / "policy.yaml").write_text(QUICK)
    with HttpServer(PackageDir(package.root), tmp_path / "policy.yaml", tmp_path) as server:
        report = drill(
            package.root,
            faults=["nan"],
            url=server.url,
            name=DRILLED_NAME,
            control=server.control,
            audit_log=server.audit_log,
            policy=tmp_path / "policy.yaml",
            seconds=0.3,
            clients=2,
        )
        assert report.passed, report.reasons
        assert report.server == f"the server at {server.url}"
        assert server.connect()  # it still runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faults": ["nann"]}, "fault 'nann' is not one of nan, gates"),
        ({"faults": ["kill"], "in_process": True}, "no worker that a drill may kill"),
        ({"url": "http://127.0.0.1:1", "faults": ["kill"]}, "no worker that a drill may kill"),
        ({"in_process": True, "url": "http://127.0.0.1:1"}, "one can be given"),
        ({"tritonserver": "nowhere"}, "where there is no bin/tritonserver"),
        ({"clients": 0}, "clients is 0, expected more than 0"),
        ({"seconds": 1e10}, r"seconds is 1e\+10, expected more than 0, and 1e\+09 at most"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        drill(tmp_path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "https://host:1",
        "http://host:1/v2/models",
        "http://localhost:PORT",
        "http://host:80000",
        "http://[::1",
    ],
)
def test_an_address_of_another_form_is_refused(tmp_path: Path, url: str):
    package = write_package(tmp_path / "package")
    files = {"name": "m", "control": tmp_path / "c", "audit_log": tmp_path / "a"}
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        drill(package.root, url=url, **files)  # type: ignore[arg-type]


def test_of_a_server_that_runs_the_files_have_to_be_known(tmp_path: Path):
    package = write_package(tmp_path / "package")
    with pytest.raises(ConfigError, match="the control file and the audit log"):
        drill(package.root, url="http://127.0.0.1:1", name="m")


# Every fault in servers of their own, under load: minutes, so at night.


@nightly
def test_moh_deploy_serve_holds_and_starts_a_killed_worker_again(tmp_path: Path):
    report = drill(write_routed(tmp_path / "package").root, clients=4, seconds=2.0)
    assert report.passed, report.reasons
    assert [fault.fault for fault in report.faults] == [*FAULTS, "kill"]
    killed = report.faults[-1]
    assert killed.wrong == 0
    assert killed.seconds_to_return is not None


@nightly
def test_triton_holds_in_all_that_leaves_its_process_alive(tmp_path: Path):
    server_or_skip()
    package = write_routed(tmp_path / "package")
    report = drill(package.root, faults=FAULTS, clients=4, seconds=2.0, tritonserver=ENVIRONMENT)
    assert report.passed, report.reasons


@nightly
def test_triton_does_not_start_a_killed_process_again_and_answers_nothing_wrong(tmp_path: Path):
    server_or_skip()
    package = write_routed(tmp_path / "package")
    report = drill(package.root, faults=["kill"], return_timeout=5.0, tritonserver=ENVIRONMENT)
    (killed,) = report.faults
    assert (killed.wrong, killed.seconds_to_return) == (0, None)
    assert "not healthy" in killed.failures[0]
