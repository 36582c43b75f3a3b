from __future__ import annotations

from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import ConfigError
from moh_deploy.validate.compare.policy import read_policy
from moh_deploy.validate.compare.tolerances import tolerance_for
from tests.handmade_package import write_package


def policy_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return path


def test_figures_of_the_file_replace_those_of_the_table(tmp_path: Path):
    path = policy_file(tmp_path, "tolerances: {float32: {relative: 0.5, reason: a demo}}\n")
    policy = read_policy(path)
    rule = policy.rule("float32")
    assert (rule.relative, rule.reason) == (0.5, "a demo")
    assert rule.near_tie == tolerance_for("float32").near_tie
    assert policy.rule("float16") == tolerance_for("float16")


def test_verify_judges_by_the_file_and_the_report_says_so(tmp_path: Path):
    path = policy_file(tmp_path, "tolerances: {float32: {relative: 0.5, reason: a demo}}\n")
    write_package(tmp_path / "package", scale=1.01)
    assert not moh_deploy.verify(tmp_path / "package").equal
    report = moh_deploy.verify(tmp_path / "package", policy=path)
    assert report.equal
    assert report.policy == f"{path} (float32) over the built-in table"
    assert report.rules["float32"].reason == "a demo"


def test_rules_of_metrics_are_read(tmp_path: Path):
    text = "accuracy: {top-1: {max_drop: 0.002, reason: a}, 'm:f': {min_samples: 9, reason: b}}\n"
    policy = read_policy(policy_file(tmp_path, text))
    assert policy.accuracy_rule("top-1").allowed(0.8) == 0.002
    assert policy.accuracy_rule("top-5").allowed(0.8) == pytest.approx(0.008)
    assert policy.accuracy_rule("m:f").min_samples == 9
    assert policy.accuracy_rule("m:g").min_samples == 30
    assert policy.rule("float32") == tolerance_for("float32")


def test_rule_of_a_metric_that_does_not_run_is_refused(tmp_path: Path):
    cases: list[tuple[str, list[str], str | None]] = [
        ("top-5", ["top-1", "m:f"], "top-5 judges nothing: metrics that run: top-1, m:f"),
        ("m:g", ["m:f"], "m:g judges nothing: metrics that run: m:f"),
        ("callable", ["top-1"], "callable judges nothing: metrics that run: top-1"),
        ("top-1", [], "top-1 judges nothing: no metric runs"),
        ("top-1", ["perplexity", "top-1"], None),
        ("callable", ["m:f"], None),
        ("m:f", ["m:f"], None),
    ]
    for rule, running, refused in cases:
        policy = read_policy(policy_file(tmp_path, f"accuracy: {{'{rule}': {{reason: a}}}}\n"))
        if refused is None:
            policy.check_metrics(running)
            continue
        with pytest.raises(ConfigError, match=refused):
            policy.check_metrics(running)


def test_verify_without_labels_refuses_rules_of_metrics(tmp_path: Path):
    path = policy_file(tmp_path, "accuracy: {top-1: {max_drop: 0.002, reason: a}}\n")
    with pytest.raises(ConfigError, match="top-1 judges nothing: no metric runs"):
        moh_deploy.verify(tmp_path / "none", policy=path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds None, expected a mapping"),
        ("tolerance: {}", "'tolerance' is none of tolerances, accuracy"),
        ("accuracy: {}", "accuracy holds {}, expected a mapping"),
        ("accuracy: {top1: {reason: a}}", "accuracy.top1 is none of top-1, top-5, perplexity"),
        ("accuracy: {top-1: {max_drop: 0.1}}", r"top-1\.reason is None, expected a sentence"),
        ("accuracy: {top-1: {drop: 0.1, reason: a}}", "'drop' is none of max_drop, max_relative"),
        ("accuracy: {top-1: {min_samples: 1.5, reason: a}}", "is 1.5, expected a whole number"),
        (
            "accuracy: {top-1: {max_drop: 0.1, max_relative_drop: 0.1, reason: a}}",
            "has max_drop and max_relative_drop: one of them is the limit",
        ),
        ("tolerances: {float8: {relative: 1}}", "'float8' is none of float64, float32"),
        ("tolerances: {float32: {relativ: 1}}", "'relativ' is none of relative, near_tie"),
        ("tolerances: {float32: {relative: 1}}", r"float32\.reason is None, expected a sentence"),
        ("tolerances: {float32: {relative: 1e-3, reason: a}}", "relative is '1e-3', expected a f"),
        ("tolerances: {float32: {relative: -1, reason: a}}", "relative is -1, expected a finite"),
        ("tolerances: {float32: {relative: .nan, reason: a}}", "relative is nan, expected a fini"),
        ("tolerances: {", "is not valid YAML"),
    ],
)
def test_file_that_is_no_policy_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        read_policy(policy_file(tmp_path, text))


def test_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"):
        read_policy(tmp_path / "policy.yaml")
