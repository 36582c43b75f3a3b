"""What a tie excuses, and what is compared of a layer beside its gates."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moh_deploy.package import LayerRounding, Spread, fingerprint
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.layer_parity import LayerReference, LayerValuesFound, compare_layer
from moh_deploy.validate.compare.parity_result import LayerParity
from moh_deploy.validate.compare.tolerances import tolerance_for

HALF, FULL = tolerance_for("float16"), tolerance_for("float32")

# One shared and four routed heads, of which a token takes two. The second token has a tie.
GATES = np.array([[[1.0, 1.2, 0.8, 0, 0], [1.0, 1.1, 0.9, 0, 0]]], np.float32)
SCORES = np.array([[[0.5, 0.3, 0.15, 0.05], [0.4, 0.2000, 0.1995, 0.2005 - 0.001]]], np.float32)
MARGINS = np.array([[0.15, 0.0005]], np.float32)
FLOOR = LayerRounding(Spread(1e-7, 3e-7), Spread(1e-6, 3e-6), Spread(1e-6, 3e-6))


def reference(**changes: object) -> LayerReference:
    return replace(
        LayerReference("a", "0", GATES, MARGINS, scores=SCORES, num_shared_heads=1), **changes
    )


def compared(
    gates: Array, expected: LayerReference | None = None, scores: Array | None = None
) -> LayerParity:
    return compare_layer(expected or reference(), LayerValuesFound(gates, scores), HALF)[0]


def fully(expected: LayerReference, *values: Array | None) -> LayerParity:
    """Compare in float32 scores and fingerprints beside gates that are equal."""
    return compare_layer(expected, LayerValuesFound(GATES, *values), FULL, floor=FLOOR)[0]


def with_token(*heads: float) -> Array:
    """The gates, with others for the token that has a tie."""
    gates = GATES.copy()
    gates[0, 1] = heads
    return gates


def test_heads_near_the_boundary_may_be_exchanged():
    for gates in (with_token(1, 1.1, 0, 0.9, 0), with_token(1, 1.1, 0, 0, 0.9)):
        layer = compared(gates)
        assert (layer.reason, layer.excused_tokens, layer.flipped_tokens) == (None, 1, 0)


@pytest.mark.parametrize(
    ("gates", "why"),
    [
        (with_token(1, 1.1, 0.9, 0.5, 0), "no tie changes how many heads a token takes"),
        (with_token(1, 1.1, 0, 0, 0), "no tie changes how many heads a token takes"),
        (with_token(0, 1.1, 0.9, 0.5, 0), "shared heads are no matter of choice"),
        (with_token(1, 0, 0.9, 1.1, 0), "farther from the boundary than that"),
        (with_token(1, 0, 0, 1.1, 0.9), "farther from the boundary than that"),
    ],
)
def test_tie_excuses_nothing_else(gates: Array, why: str):
    layer = compared(gates)
    assert (layer.excused_tokens, layer.flipped_tokens) == (0, 1)
    assert layer.reason is not None
    assert why in layer.reason
    assert layer.wrong == ("choice",)


def test_tie_excuses_nothing_of_a_token_whose_choice_is_clear():
    gates = GATES.copy()
    gates[0, 0] = [1, 1.2, 0, 0.8, 0]
    layer = compared(gates)
    assert layer.flipped_tokens == 1
    assert "with margin 0.15 (rounding explains flips below 0.01)" in (layer.reason or "")
    # The bound is what the scores may be off.
    found = LayerValuesFound(with_token(1, 1.1, 0, 0.9, 0))
    layer, _ = compare_layer(reference(), found, FULL, floor=FLOOR)
    assert layer.margin_bound == pytest.approx(32 * FLOOR.scores.largest)
    assert layer.flipped_tokens == 1


def test_tie_does_not_excuse_a_choice_against_the_own_scores():
    others = with_token(1, 1.1, 0, 0.9, 0)  # the third of the routed heads for the second
    own = SCORES.copy()
    own[0, 1] = [0.4, 0.1995, 0.2, 0.1995]
    followed = compared(others, scores=own)
    assert (followed.excused_tokens, followed.flipped_tokens) == (1, 0)
    against = compared(others, scores=SCORES)
    assert (against.excused_tokens, against.flipped_tokens) == (0, 1)
    assert "not those that it ranks highest itself" in (against.reason or "")


@pytest.mark.parametrize("mask", [-np.inf, -1e9])
def test_masked_scores_do_not_excuse_a_choice_against_the_others(mask: float):
    scores = SCORES.copy()
    scores[0, 1, 0] = mask  # closed on both sides
    wanted, others = with_token(1, 0, 1.1, 0, 0.9), with_token(1, 0, 1.1, 0.9, 0)
    expected = reference(gates=wanted, scores=scores)
    own = scores.copy()
    own[0, 1, 1:] = [0.2, 0.1994, 0.1996]
    assert compared(others, expected, own).wrong == ("choice",)
    own[0, 1, 1:] = [0.2, 0.1996, 0.1994]
    assert compared(others, expected, own).excused_tokens == 1


@pytest.mark.parametrize(
    ("has_scores", "why"),
    [
        (False, "the package holds no scores of its routers, as those of earlier versions: export"),
        (True, "the scores that its router ranks are not known."),
    ],
)
def test_flip_near_a_tie_without_scores_is_no_data(has_scores: bool, why: str):
    expected = reference(scores=None, has_scores=has_scores)
    layer = compared(with_token(1, 1.1, 0, 0.9, 0), expected)
    assert layer.no_data
    assert (layer.undecided_tokens, layer.wrong) == (1, ())
    assert why in (layer.reason or "")
    # What no tie can do needs no scores to tell.
    layer = compared(with_token(1, 1.1, 0, 0, 0), expected)
    assert not layer.no_data
    assert layer.flipped_tokens == 1


# By it a gate may be 2.34e-3 off: two steps of float16 of the largest.
GATES_FLOOR = LayerRounding(None, Spread(1e-4, 2.5e-4), None)
NO_LIMIT = LayerRounding(None, Spread(np.inf, np.inf), None)
NO_MARGINS = np.full_like(MARGINS, np.inf)
NEAR_ZERO = with_token(1, 1.1, 0.9, 2e-3, 0)


def near_zero(found: Array, floor: LayerRounding | None = GATES_FLOOR, **of: object) -> LayerParity:
    expected = reference(**{"scores": None, "margins": NO_MARGINS, **of})
    layer, flipped = compare_layer(expected, LayerValuesFound(found), HALF, floor=floor)
    assert flipped is not None
    assert int(flipped.sum()) == layer.flipped_tokens
    return layer


@pytest.mark.parametrize(("found", "wanted"), [(NEAR_ZERO, GATES), (GATES, NEAR_ZERO)])
def test_gate_near_zero_opens_and_closes_where_nothing_is_ranked(found: Array, wanted: Array):
    layer = near_zero(found, gates=wanted)
    assert (layer.reason, layer.other_heads, layer.agreement) == (None, 0, 1.0)
    assert layer.gate_error == pytest.approx(2e-3)


@pytest.mark.parametrize(
    "of",
    [{"floor": None}, {"floor": NO_LIMIT}, {"scores": SCORES}, {"margins": MARGINS}],
    ids=["no floor", "no limit", "scores", "margins"],
)
def test_gate_near_zero_is_a_choice_where_a_router_ranks_or_noise_is_unknown(of: dict[str, Any]):
    assert near_zero(NEAR_ZERO, **of).flipped_tokens == 1


@pytest.mark.parametrize("gate", [-2.5e-3, 2.5e-3, np.nan])
def test_gate_far_from_zero_is_a_choice(gate: float):
    layer = near_zero(with_token(1, 1.1, 0.9, gate, 0))
    assert layer.flipped_tokens == 1
    assert "with a margin that is not known" in (layer.reason or "")


def test_shared_head_is_never_closed_by_rounding():
    wanted = with_token(2e-3, 1.1, 0.9, 0, 0)
    assert near_zero(with_token(0, 1.1, 0.9, 0, 0), gates=wanted).flipped_tokens == 1


def test_gates_of_a_token_that_took_other_heads_by_a_tie_are_not_compared():
    assert compared(with_token(1, 1.3, 0, 0.9, 0)).reason is None
    gates = with_token(1, 1.1, 0, 0.9, 0)
    gates[0, 0, 1] = 1.5  # of a token whose choice was clear
    assert compared(gates).wrong == ("gates",)


def scores_with(column: int, value: float) -> Array:
    scores = SCORES.copy()
    scores[0, :, column] = value
    return scores


HIDDEN, CLOSED = scores_with(-1, -1e9), scores_with(3, -np.inf)


@pytest.mark.parametrize(
    ("expected", "found", "wrong"),
    [
        (SCORES, SCORES, ()),
        (SCORES, SCORES + np.float32(1e-5), ("scores",)),
        # Scores that a router masks excuse no others, and infinite ones have to be the same.
        (HIDDEN, HIDDEN, ()),
        (HIDDEN, HIDDEN + np.float32(0.001), ("scores",)),
        (CLOSED, CLOSED, ()),
        (CLOSED, SCORES, ("scores",)),
    ],
)
def test_scores_are_compared(expected: Array, found: Array, wrong: tuple[str, ...]):
    layer = fully(reference(scores=expected), found)
    assert layer.wrong == wrong
    if wrong:
        assert "scores of the router of layer 'a' in vectors 0 differs by" in (layer.reason or "")


def test_scores_are_compared_by_root_mean_square():
    layer = fully(reference(), SCORES + np.float32(1e-5))
    assert layer.score_error == pytest.approx(1e-5, rel=0.01)


def test_where_most_tokens_are_near_ties_the_scores_judge():
    layer = fully(reference(margins=np.full((1, 2), 1e-8, np.float32)), SCORES)
    assert (layer.judged_by, layer.reason, layer.no_data) == ("scores", None, False)
    assert fully(reference(), SCORES).judged_by == "choices"


def test_layer_without_a_token_is_no_data():
    nothing = np.zeros((1, 0, 5), np.float32)
    expected = LayerReference("a", "0", nothing, np.zeros((1, 0), np.float32))
    layer, _ = compare_layer(expected, LayerValuesFound(nothing), FULL)
    assert layer.no_data
    assert layer.judged_by == "nothing"


def test_attention_is_compared_by_its_fingerprint():
    value = np.random.default_rng(0).standard_normal((1, 2, 40))
    expected = reference(attention=fingerprint(value))
    assert fully(expected, None, fingerprint(value)).reason is None
    layer = fully(expected, None, fingerprint(value * 1.0001))
    assert layer.wrong == ("attention",)
    assert layer.attention_error == pytest.approx(1e-4, rel=0.01)
    assert "the attention of layer 'a' in vectors 0 differs by 0.0001" in (layer.reason or "")
    hole = value.copy()
    hole[0, 1] = np.nan
    assert fully(expected, None, fingerprint(hole)).wrong == ("attention",)
    # NaN of the reference is judged where it shows.
    assert fully(reference(attention=fingerprint(hole)), None, fingerprint(value)).reason is None
