from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import ConfigError
from moh_deploy.validate.compare.policy import (
    AccuracyCondition,
    FlipsCondition,
    ParityCondition,
    parse_condition,
    parse_conditions,
    read_policy,
)
from moh_deploy.validate.compare.tolerances import tolerance_for
from tests.handmade_package import write_package

BOTH = "{max_drop: 0.1, max_relative_drop: 0.1, reason: a}"


def policy_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    return path


def test_figures_of_the_file_replace_those_of_the_table(tmp_path: Path):
    path = policy_file(tmp_path, "tolerances: {float32: {relative: 0.5, reason: a demo}}\n")
    policy = read_policy(path)
    rule, usual = policy.rule("float32"), tolerance_for("float32")
    assert (rule.relative, rule.reason, rule.near_tie) == (0.5, "a demo", usual.near_tie)
    assert policy.rule("float16") == tolerance_for("float16")
    # `verify` judges by the file, and its report says so.
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


@pytest.mark.parametrize(
    ("rule", "running", "refused"),
    [
        ("top-5", ["top-1", "m:f"], "top-5 judges nothing: metrics that run: top-1, m:f"),
        ("m:g", ["m:f"], "m:g judges nothing: metrics that run: m:f"),
        ("callable", ["top-1"], "callable judges nothing: metrics that run: top-1"),
        ("top-1", [], "top-1 judges nothing: no metric runs"),
        ("top-1", ["perplexity", "top-1"], None),
        ("callable", ["m:f"], None),
        ("m:f", ["m:f"], None),
    ],
)
def test_rule_of_a_metric_that_does_not_run_is_refused(
    tmp_path: Path, rule: str, running: list[str], refused: str | None
):
    path = policy_file(tmp_path, f"accuracy: {{'{rule}': {{reason: a}}}}\n")
    if refused is None:
        read_policy(path).check_metrics(running)
        return
    with pytest.raises(ConfigError, match=refused):
        read_policy(path).check_metrics(running)
    if not running:
        with pytest.raises(ConfigError, match=refused):
            moh_deploy.verify(tmp_path / "none", policy=path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds None, expected a mapping"),
        ("tolerance: {}", "'tolerance' is not one of tolerances, accuracy"),
        ("accuracy: {}", "accuracy holds {}, expected a mapping"),
        ("accuracy: {top1: {reason: a}}", "accuracy.top1 is not one of top-1, top-5, perplexity"),
        ("accuracy: {top-1: {max_drop: 0.1}}", r"top-1\.reason is None, expected a sentence"),
        (
            "accuracy: {top-1: {drop: 0.1, reason: a}}",
            "'drop' is not one of max_drop, max_relative",
        ),
        ("accuracy: {top-1: {min_samples: 1.5, reason: a}}", "is 1.5, expected a whole number"),
        (f"accuracy: {{top-1: {BOTH}}}", "has max_drop and max_relative_drop: one of them is the"),
        ("tolerances: {float8: {relative: 1}}", "'float8' is not one of float64, float32"),
        ("tolerances: {float32: {relativ: 1}}", "'relativ' is not one of relative, near_tie"),
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
    with pytest.raises(ConfigError, match="no such file"):
        read_policy(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "better", "loss"),
    [
        ("top-1 >= 0.98 * reference", "higher", 0.02),
        (" top-5>=.9*reference ", "higher", 0.1),
        ("perplexity <= 1.02 * reference", "lower", 0.02),
        ("scores:mean_iou >= 0.99 * reference", "higher", 0.01),
        ("scores:distance <= 1.5 * reference", "lower", 0.5),
        ("perplexity <= 2 * reference", "lower", 1.0),
        ("scores:error_rate <= 3 * reference", "lower", 2.0),
    ],
)
def test_factor_becomes_what_may_be_lost(text: str, better: str, loss: float):
    found = parse_condition(text)
    assert isinstance(found, AccuracyCondition)
    assert (found.better, found.rule.max_drop) == (better, None)
    assert found.rule.max_relative_drop == pytest.approx(loss)
    assert found.rule.allowed(0.5) == pytest.approx(loss / 2)
    assert text.strip() in found.rule.reason


def test_flips_are_a_number_or_a_share():
    assert parse_condition("flips <= 3") == FlipsCondition("flips <= 3", 3.0, is_share=False)
    share = parse_condition("flips <= 0.5 %")
    assert isinstance(share, FlipsCondition)
    assert parse_condition("parity") == ParityCondition("parity")
    assert (share.allowed(1000), parse_condition("flips <= 3").allowed(1000)) == (5.0, 3.0)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is no condition"),
        ("top-1", "is no condition"),
        ("top-1 > 0.98 * reference", "is no condition"),
        ("top-1 >= 0.98", "expected FACTOR * reference"),
        ("top-1 >= 0.98 * baseline", "expected FACTOR * reference"),
        ("top-1 <= 0.98 * reference", "from the side that is good, expected >="),
        ("perplexity >= 1.02 * reference", "from the side that is good, expected <="),
        ("top-1 >= reference", "expected one that allows a loss"),
        ("top-1 >= 1.1 * reference", "expected one that allows a loss"),
        ("top-1 >= 0 * reference", "expected one that allows a loss"),
        ("perplexity <= 0.9 * reference", "expected one that allows a loss"),
        ("top-2 >= 0.98 * reference", "there is no metric 'top-2'"),
        ("flips >= 3", "bounded from above"),
        ("flips <= 3 * reference", "bounded from above"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, part: str):
    with pytest.raises(ConfigError) as refused:
        parse_condition(text)
    assert part in refused.value.message


def test_metric_stands_in_one_condition():
    with pytest.raises(ConfigError, match="2 conditions are about top-1"):
        parse_conditions(["top-1 >= 0.9 * reference", "top-1 >= 0.8 * reference"])
    with pytest.raises(ConfigError, match="no condition"):
        parse_conditions([])
