"""Conditions, read from text."""

from __future__ import annotations

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.validate.compare.policy import (
    AccuracyCondition,
    FlipsCondition,
    ParityCondition,
    parse_condition,
    parse_conditions,
)


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
    assert (share.allowed(1000), parse_condition("flips <= 3").allowed(1000)) == (5.0, 3.0)


def test_parity_is_a_word():
    assert parse_condition("parity") == ParityCondition("parity")


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
