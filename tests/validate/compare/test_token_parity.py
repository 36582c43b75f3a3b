"""Texts are compared up to where they part, and rounding excuses what it may have chosen."""

from __future__ import annotations

import numpy as np
import pytest

from moh_deploy.report.document import Text
from moh_deploy.runtime.text.decoding import DecodedStep
from moh_deploy.validate.compare.generate_report import TokenComparison, parity_sections


def step(*tokens: int | None, logits=None) -> DecodedStep:
    return DecodedStep(tokens, np.zeros((len(tokens), 5)) if logits is None else logits)


def test_row_is_compared_up_to_its_first_difference():
    logits = np.array([[0, 3, 1, 0, 0], [0, 0, 0, 0, 9]], np.float32)
    comparison = TokenComparison([step(1, 2), step(1, 4, logits=logits), step(3, 3)], "float32")
    for position, one in enumerate([step(1, 2), step(2, 4), step(0, 3)]):
        comparison.add(one, position)
    (difference,) = comparison.differences
    assert (difference.prompt, difference.position) == (1, 1)
    assert (difference.token, difference.expected, difference.margin) == (2, 1, 2.0)
    assert not difference.is_near_tie
    assert comparison.compared == 5  # both rows twice, then the second alone


def test_rounding_excuses_a_margin_that_it_may_make():
    logits = np.array([[0, 1, 1 - 1e-6, 0, 0]], np.float32)
    comparison = TokenComparison([step(1, logits=logits)], "float32")
    comparison.add(step(2), 0)
    assert comparison.differences[0].is_near_tie


@pytest.mark.parametrize("ruled_out", [-np.inf, np.finfo(np.float32).min, -1e9])
def test_tokens_that_a_model_rules_out_excuse_no_others(ruled_out: float):
    logits = np.array([[0, 3, 1, 0, ruled_out]], np.float32)
    for other in (2, 4):
        comparison = TokenComparison([step(1, logits=logits)], "float32")
        comparison.add(step(other), 0)
        assert not comparison.differences[0].is_near_tie


def test_lower_precisions_have_rules_of_their_own():
    logits = np.array([[0, 1, 1 - 1e-3, 0, 0]], np.float32)
    for precision, is_excused in (("float32", False), ("int8", True), ("int4", True)):
        comparison = TokenComparison([step(1, logits=logits)], precision)
        comparison.add(step(2), 0)
        assert comparison.differences[0].is_near_tie is is_excused


def test_tokens_of_few_bits_are_within_tolerance_and_counted():
    logits = np.array([[0, 3, 3 - 1e-6, -3, 0]], np.float32)
    for precision, token, verdict, words in (
        ("float32", 1, "equal", "EQUAL tokens: 3 of 3"),
        ("float32", 2, "within tolerance", "tokens part by rounding alone: 1 of 3"),
        ("int4", 1, "within tolerance", "WITHIN TOLERANCE (int4): 3 of 3"),
        ("int4", 2, "within tolerance", "WITHIN TOLERANCE (int4): 1 of 3"),
        ("int4", 3, "not equal", "OTHER tokens: 1 of 3"),
    ):
        comparison = TokenComparison([step(1, logits=logits)] * 3, precision)
        for position, tokens in enumerate([step(1), step(token), step(1)]):
            comparison.add(tokens, position)
        parity = comparison.parity("another")
        assert (parity.verdict, parity.tokens) == (verdict, 3)
        (first, *_) = parity_sections(parity)
        assert isinstance(first, Text)
        assert first.text.startswith(f"{words} greedy tokens are the same before texts part")


def test_text_that_ended_earlier_is_compared_as_far_as_both_go():
    comparison = TokenComparison([step(1, None)], "float32")
    comparison.add(step(1, 3), 0)
    comparison.add(step(1, 3), 1)
    assert (comparison.compared, comparison.differences) == (1, [])
