"""What holds for every router form, and how choices are judged."""

from pathlib import Path

import numpy as np
import pytest

from moh_deploy.frontend.recognize.routers.forms import MATCHERS
from moh_deploy.ops.routers import FORMS, SCORED, TOP_K, RouterForm, form_named, gaps_of

PACKAGE_FORMAT = Path(__file__).parents[2] / "docs/package-format.md"


def test_each_form_has_a_name_a_matcher_and_a_place_in_the_documentation():
    names, documented = [form.name for form in FORMS], PACKAGE_FORMAT.read_text()
    assert sorted(set(names)) == sorted(names) == sorted(MATCHERS)
    for form in FORMS:
        assert f"| `{form.name}` | {form.doc} |" in documented


def test_form_is_found_by_the_name_in_a_manifest():
    assert form_named("scored") is SCORED


def test_probabilities_are_ranked_but_of_a_router_whose_scores_have_a_bias():
    logits = np.log(np.asarray([[[0.1, 0.2, 0.3, 0.4]]], np.float32))
    np.testing.assert_allclose(TOP_K.scores(logits)[0, 0], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(SCORED.scores(logits), logits)


def test_nan_and_infinity_among_logits_make_nan():
    logits = np.asarray([[[np.nan, 1, 2], [np.inf, np.inf, 0]]], np.float32)
    assert np.isnan(TOP_K.scores(logits)).any(axis=-1).all()


@pytest.mark.parametrize("form", [TOP_K, SCORED])
def test_no_token_has_no_score(form: RouterForm):
    assert form.scores(np.zeros((1, 0, 4))).shape == (1, 0, 4)


def test_margin_is_the_gap_between_the_last_chosen_and_the_first_unchosen_score():
    scores = np.asarray([[[0.1, 0.2, 0.3, 0.4]]], np.float32)
    assert gaps_of(scores, 1)[0, 0] == pytest.approx(0.1)
    assert gaps_of(scores, 3)[0, 0] == pytest.approx(0.1)
    assert gaps_of(scores, 4)[0, 0] == np.inf
    assert gaps_of(np.zeros((1, 2, 3), np.float32), 2).tolist() == [[0.0, 0.0]]


def test_margins_of_scores_that_are_no_logits_are_their_gaps():
    scores = np.array([[[0.9, 0.4, 0.1], [0.5, np.nan, 0.2]]], np.float32)
    assert gaps_of(scores, 1)[0, 0] == pytest.approx(0.5)
    assert gaps_of(scores, 2)[0, 0] == pytest.approx(0.3)
    assert gaps_of(scores, 3)[0, 0] == np.inf
    assert np.isnan(gaps_of(scores, 1)[0, 1])


def test_heads_that_no_token_may_choose_are_no_tie_and_no_warning():
    scores = np.array([[0.3, -np.inf, -np.inf]])
    assert gaps_of(scores, 1)[0] == np.inf
    assert np.isnan(gaps_of(scores, 2)[0])
