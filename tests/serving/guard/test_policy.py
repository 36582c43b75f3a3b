import json
from pathlib import Path

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.serving.guard.policy import CoolDownSection, GuardPolicy, read_guard_policy
from tests.kept_builds import ROOT
from tests.pages.blocks import blocks

OTHER = "rungs: [{kind: kernels}, {kind: package, name: plain, path: plain, measured_loss: %s}]"


def written(folder: Path, text: str) -> Path:
    path = folder / "policy.yaml"
    path.write_text(text)
    return path


def report(folder: Path, *, equal: bool = False, better: str = "higher") -> None:
    """Write a report of two references, of which the second is no better than the package."""
    reference = "NaN" if better == "nothing" else 0.975
    metric = {"metric": "top-1", "better": better, "reference": reference, "package": 0.955}
    metrics = [metric, {**metric, "reference": 0.955}]
    content = {"equal": equal, "accuracy": metrics, "comparisons": []}
    (folder / "report.json").write_text(json.dumps(content))


def test_what_is_left_out_is_usual(tmp_path: Path):
    policy = read_guard_policy(written(tmp_path, "probes: 3"))
    assert policy == GuardPolicy(probes=3)
    assert policy.spot_checks == 0.01
    assert [level.called for level in policy.rungs] == ["kernels", "functions"]


def test_policies_of_the_page_can_be_read(tmp_path: Path):
    page = (ROOT / "docs" / "guard.md").read_text()
    chain, other = (block.text for block in blocks(page) if block.language == "yaml")
    (tmp_path / "loss.json").write_text(
        json.dumps(
            {
                "equal": False,
                "accuracy": [
                    {"metric": "top-1", "better": "higher", "reference": 0.975, "package": 0.971}
                ],
                "comparisons": [],
            }
        )
    )
    policy, usual = read_guard_policy(written(tmp_path, chain)), GuardPolicy()
    assert policy.names == ("kernels", "functions", "dense")
    for section in ("faults", "latency", "cool_down", "probes", "spot_checks"):
        assert getattr(policy, section) == getattr(usual, section)
    assert read_guard_policy(written(tmp_path, other)).drift is not None


def test_a_chain_whose_levels_cannot_be_compared_need_not_say_so(tmp_path: Path):
    assert read_guard_policy(written(tmp_path, "rungs: [{kind: kernels}]"))


@pytest.mark.parametrize(("openings", "seconds"), [(0, 1), (1, 3), (2, 9), (3, 9), (10_000, 9)])
def test_a_cool_down_grows_up_to_the_longest(openings: int, seconds: float):
    cool_down = CoolDownSection(first_s=1.0, back_off=3.0, longest_s=9.0)
    assert cool_down.seconds(openings) == seconds


def test_a_level_that_changes_answers_may_be_used_with_its_measured_loss(tmp_path: Path):
    report(tmp_path)
    text = OTHER % "{report: report.json, metric: top-1, loss: 0.02}"
    policy = read_guard_policy(written(tmp_path, f"{text}\ndrift: {{rung: plain}}"))
    assert policy.rungs[1].path == tmp_path / "plain"
    assert not policy.rungs[1].same_answers


def test_a_report_that_says_equal_is_enough(tmp_path: Path):
    report(tmp_path, equal=True)
    assert read_guard_policy(written(tmp_path, OTHER % "{report: report.json}"))


@pytest.mark.parametrize(
    ("loss", "better", "message"),
    [
        ("{report: missing.json}", "higher", "rungs.1.measured_loss.report is .*not exist"),
        ("{report: report.json}", "higher", "does not say that the packages are equal"),
        (
            "{report: report.json, metric: top-5}",
            "higher",
            "rungs.1.measured_loss.metric is 'top-5'; .* has top-1",
        ),
        (
            "{report: report.json, metric: top-1, loss: 0.01}",
            "higher",
            "rungs.1.measured_loss.loss is 0.01, but .* says 0.02 of top-1",
        ),
        ("{report: report.json, metric: top-1}", "nothing", "no finite numbers of 'top-1'"),
        ("{report: policy.yaml}", "higher", "not valid JSON"),
        ("{report: other.json}", "higher", "no JSON report of `moh-deploy verify`"),
    ],
)
def test_a_loss_that_its_report_does_not_say_is_refused(
    tmp_path: Path, loss: str, better: str, message: str
):
    report(tmp_path, better=better)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match=message):
        read_guard_policy(written(tmp_path, OTHER % loss))


def test_a_metric_that_is_better_on_the_level_loses_nothing(tmp_path: Path):
    report(tmp_path, better="lower")
    assert read_guard_policy(written(tmp_path, OTHER % "{report: report.json, metric: top-1}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rungs: [{kind: kernels}, {kind: package, path: a}]", "rungs.1.measured_loss is missing"),
        ("rungs: [{kind: package, measured_loss: {report: r}}]", "rungs.0.path is missing"),
        ("rungs: [{kind: kernels, path: a}]", "rungs.0.path is given"),
        ("rungs: [{kind: kernels}, {kind: kernels}]", "rungs.1.name is 'kernels'"),
        ("rungs: [{kind: fast}]", "rungs.0.kind is 'fast': input should be 'kernels'"),
        ("rungs: []", r"rungs is \[\]"),
        ("rungs: [{kinds: kernels}]", "rungs.0.kinds is not a known key. Did you mean 'kind'"),
        ("cool_down: {first: 3}", "cool_down.first is not a known key"),
        ("cool_down: {first_s: '3'}", "cool_down.first_s is '3': input should be a valid number"),
        ("cool_down: {first_s: 700}", "cool_down.longest_s is less"),
        ("spot_checks: 2", "spot_checks is 2: input should be less"),
        ("{spot_checks: 0.1, rungs: [{kind: kernels}]}", "spot_checks is given, but no level"),
        ("drift: {rung: plain}", "drift.rung is 'plain', expected one of kernels, functions"),
        ("drift: {rung: functions}", "routes as the first level does"),
        ("- a", "expected a mapping with rungs"),
        ("", "expected a mapping with rungs"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(tmp_path: Path, text: str, message: str):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_guard_policy(path)
    assert str(caught.value).startswith(f"{path}: ")
