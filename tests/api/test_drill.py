from __future__ import annotations

from pathlib import Path

import pytest

from moh_deploy.api.drill import drill
from moh_deploy.errors import ConfigError
from tests.handmade_package import write_package
from tests.routed_package import write_routed

SHORT = {"seconds": 0.3, "clients": 2, "in_process": True}


def test_a_drill_in_this_process_holds_and_says_what_clients_saw(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    report = drill(package.root, faults=["nan", "crash", "missing-library", "drift"], **SHORT)
    assert report.passed, report.reasons
    assert report.before.requests > 0
    assert [one.fault for one in report.faults] == ["nan", "crash", "missing-library", "drift"]
    for one in report.faults[:3]:
        assert (one.outcome, one.wrong, one.failed) == ("held", 0, 0)
        assert one.moved
        assert one.seconds_to_return is not None
        assert len(one.served) == 2
    assert report.faults[3].reason == "drift"


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faults": ["nann"]}, "fault 'nann' is none of nan, gates"),
        ({"faults": ["kill"], "in_process": True}, "no worker to kill"),
        ({"clients": 0}, "clients is 0, expected more than 0"),
        ({"seconds": float("inf")}, "seconds is inf"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        drill(tmp_path, **options)  # type: ignore[arg-type]
