import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.validate.accuracy.choose import TopK
from moh_deploy.validate.accuracy.task import Scored, Tally
from moh_deploy.validate.reference.valid_tokens import ValidTokens

LOGITS = np.eye(4, dtype=np.float32)


def test_batches_are_paired_sample_by_sample_and_ignored_ones_left_out():
    tally = Tally(TopK(1, "y"))
    tally.add({"y": LOGITS}, {"y": LOGITS}, np.array([0, -100, 2, 1]))
    tally.add({"y": LOGITS[:2]}, {"y": LOGITS[1:3]}, np.array([0, 1]))
    found = tally.paired()
    assert found.numbers.tolist() == [0, 2, 3, 4, 5]
    assert found.reference.tolist() == [1, 1, 0, 1, 1]
    assert found.package.tolist() == [1, 1, 0, 0, 0]
    assert found.labels.tolist() == [0, 2, 1, 0, 1]
    assert found.package_classes.tolist() == [0, 2, 3, 1, 2]
    assert found.ignored == 1


def test_reference_without_the_output_is_refused():
    with pytest.raises(ConfigError, match="the reference has no output 'y', which is scored by"):
        Tally(TopK(1, "y")).add({"z": LOGITS}, {"y": LOGITS}, np.arange(4))


def test_nothing_to_score_is_refused():
    tally = Tally(TopK(1, "y"))
    tally.add({"y": LOGITS}, {"y": LOGITS}, np.full(4, -100))
    with pytest.raises(ConfigError, match="every label is one to be ignored"):
        tally.paired()


def test_classes_that_are_as_many_as_tokens_are_not_blanked():
    mask = np.array([[True, True, False, False], [True, True, True, False]])
    of_classes = Scored({"y": LOGITS[2:]}, {"y": LOGITS[2:]}, np.array([0, 1]))
    found = of_classes.of_valid(ValidTokens("mask", mask), -100)
    assert found.package["y"].tolist() == LOGITS[2:].tolist()
    # One number for each token, and labels of tokens, too.
    for dtype in (int, float):
        given = {"y": np.ones((2, 4))}
        found = Scored(given, given, np.ones((2, 4), dtype)).of_valid(ValidTokens("m", mask), -100)
        assert (found.package["y"] == mask).all()
