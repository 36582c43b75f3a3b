import ml_dtypes
import numpy as np
import pytest
import torch

from moh_deploy.errors import ConfigError
from moh_deploy.validate.accuracy.choose import Perplexity, TopK
from moh_deploy.validate.accuracy.task import Labelling, UserMetric

DRAW = np.random.default_rng(0)
LOGITS = DRAW.standard_normal((40, 9)).astype(np.float32)
LABELS = DRAW.integers(9, size=40)
TOKEN_LOGITS = DRAW.standard_normal((3, 7, 11)).astype(np.float32)
TOKENS = DRAW.integers(11, size=(3, 7))


@pytest.mark.parametrize("k", [1, 5])
def test_top_k_is_that_of_scikit_learn(k: int):
    from sklearn.metrics import top_k_accuracy_score  # takes a second, which no other test needs

    scores = TopK(k, "y").score({"y": LOGITS}, LABELS)
    expected = top_k_accuracy_score(LABELS, LOGITS, k=k, labels=range(9))
    assert scores.totals.mean() == pytest.approx(expected)
    assert scores.weights.tolist() == [1] * 40
    assert scores.classes is not None
    assert (scores.classes == LOGITS.argmax(axis=1)).all()


@pytest.mark.parametrize("shifted", [False, True])
def test_perplexity_is_that_of_pytorch(shifted: bool):
    labels = TOKENS.copy()
    labels[1, 2:] = -100
    metric = Perplexity("y", Labelling(shifted=shifted))
    scores = metric.score({"y": TOKEN_LOGITS}, labels)
    logits = TOKEN_LOGITS[:, :-1] if shifted else TOKEN_LOGITS
    targets = labels[:, 1:] if shifted else labels
    loss = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double().flatten(0, 1), torch.from_numpy(targets).flatten()
    )
    mean = scores.totals.sum() / scores.weights.sum()
    assert metric.value(np.array([mean]))[0] == pytest.approx(loss.exp().item())
    assert scores.weights.sum() == (targets != -100).sum()
    assert scores.ignored == 5


def test_mark_in_unsigned_labels_is_the_same_mark():
    labels = LABELS.copy()
    labels[3] = -100
    signed, unsigned = (
        TopK(1, "y").score({"y": LOGITS}, item) for item in (labels, labels.astype(np.uint64))
    )
    assert (signed.ignored, unsigned.ignored) == (1, 1)
    assert unsigned.totals.tolist() == signed.totals.tolist()


def test_ties_go_to_the_first_class_as_argmax_has_it():
    flat = np.zeros((6, 6), np.float32)
    labels = np.arange(6)
    for k in (1, 5):
        totals = TopK(k, "y").score({"y": flat}, labels).totals
        assert totals.tolist() == [1.0] * k + [0.0] * (6 - k)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_scored_without_overflow(dtype: type):
    logits = (TOKEN_LOGITS * 1000).astype(dtype)
    scores = Perplexity("y").score({"y": logits}, TOKENS)
    assert np.isfinite(scores.totals).all()
    assert TopK(1, "y").score({"y": logits}, TOKENS).totals.sum() > 0


@pytest.mark.parametrize("metric", [TopK(1, "y"), Perplexity("y")])
def test_nan_anywhere_is_no_score(metric: TopK | Perplexity):
    logits = TOKEN_LOGITS.copy()
    logits[1, 6, 0] = np.nan
    labels = TOKENS.copy()
    labels[1, 6] = -100  # NaN is not ignored with its label
    scores = metric.score({"y": logits}, labels)
    assert np.isnan(scores.totals).tolist() == [False, True, False]


def test_masked_classes_are_no_error_and_an_impossible_label_is_infinite():
    logits = np.array([[[0.0, -np.inf, 1.0]]], np.float32)
    metric = Perplexity("y")
    assert np.isfinite(metric.score({"y": logits}, np.array([[0]])).totals).all()
    assert np.isposinf(metric.score({"y": logits}, np.array([[1]])).totals).all()


def test_labels_outside_of_the_classes_are_refused():
    with pytest.raises(ConfigError, match=r"label 9 at \[1\] is no class of output 'y', which has"):
        TopK(1, "y").score({"y": LOGITS[:2]}, np.array([0, 9]))
    with pytest.raises(ConfigError, match=r"label -1 at \[0\]") as caught:
        TopK(1, "y").score({"y": LOGITS[:2]}, np.array([-1, 0]))
    assert "--ignore-label -1" in str(caught.value.hint)
    with pytest.raises(ConfigError, match="has 5 classes, so top-5 is always right"):
        TopK(5, "y").score({"y": LOGITS[:, :5]}, LABELS % 5)
    assert (
        TopK(1, "y", Labelling(ignore=-1)).score({"y": LOGITS[:2]}, np.array([-1, 0])).ignored == 1
    )


def test_functions_are_given_outputs_and_labels():
    metric = UserMetric("m:f", "higher", lambda outputs, labels: outputs["y"][:, 0] + labels)
    assert metric.score({"y": LOGITS}, LABELS).totals == pytest.approx(LOGITS[:, 0] + LABELS)
    broken = LOGITS.copy()
    broken[3, 1] = np.nan
    # A number alone, a loss say, is of no sample.
    given = {"y": broken, "loss": np.array(np.nan)}
    assert np.isnan(metric.score(given, LABELS).totals).sum() == 1


def test_functions_that_fail_are_named():
    def broken(outputs: object, labels: object) -> object:
        raise KeyError("probabilities")

    with pytest.raises(ConfigError, match=r"metric 'm:f' raised KeyError: 'probabilities' \(test_"):
        UserMetric("m:f", "higher", broken).score({"y": LOGITS}, LABELS)
    for wrong, said in ((1.5, "float64[]"), (np.zeros(39), "float64[39]"), ("good", "<U4[]")):
        with pytest.raises(ConfigError) as caught:
            UserMetric("m:f", "higher", lambda o, x, r=wrong: r).score({"y": LOGITS}, LABELS)
        assert f"returned {said} for 40 samples, expected a number for each" in str(caught.value)
