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
    for position, decoded in enumerate([step(1, 2), step(2, 4), step(0, 3)]):
        comparison.add(decoded, position)
    (difference,) = comparison.differences
    assert (difference.prompt, difference.position) == (1, 1)
    assert (difference.token, difference.expected, difference.margin) == (2, 1, 2.0)
    assert not difference.is_near_tie
    assert comparison.compared == 5  # both rows twice, then the second alone


@pytest.mark.parametrize(
    ("logits", "other", "precision", "is_excused"),
    [
        ([0, 1, 1 - 1e-6, 0, 0], 2, "float32", True),
        ([0, 1, 1 - 1e-3, 0, 0], 2, "float32", False),
        ([0, 1, 1 - 1e-3, 0, 0], 2, "int8", True),
        ([0, 1, 1 - 1e-3, 0, 0], 2, "int4", True),
        # Tokens that a model rules out excuse no others.
        *(
            ([0, 3, 1, 0, ruled_out], other, "float32", False)
            for ruled_out in (-np.inf, np.finfo(np.float32).min, -1e9)
            for other in (2, 4)
        ),
    ],
)
def test_rounding_excuses_a_margin_that_it_may_make(
    logits: list[float], other: int, precision: str, is_excused: bool
):
    known = step(1, logits=np.array([logits], np.float32))
    comparison = TokenComparison([known], precision)
    comparison.add(step(other), 0)
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
