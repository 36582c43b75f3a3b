import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.validate.accuracy.task import Labelling, same_tokens

IDS = np.random.default_rng(0).integers(50, size=(4, 9))
NEXT = np.concatenate([IDS[:, 1:], np.full((4, 1), -100)], axis=1)


def test_labels_that_are_the_tokens_themselves_have_to_be_shifted():
    padded = np.where(np.arange(9) > 6, -100, IDS)
    for labels in (IDS, padded):
        with pytest.raises(ConfigError, match="labels are the tokens of input 'ids'") as caught:
            same_tokens(labels, {"ids": IDS}, Labelling())
        assert "--shift-labels" in str(caught.value.hint)
        same_tokens(labels, {"ids": IDS}, Labelling(shifted=True))


def test_labels_that_are_the_next_tokens_are_not_shifted_twice():
    same_tokens(NEXT, {"ids": IDS}, Labelling())
    with pytest.raises(ConfigError, match="shifted by one already"):
        same_tokens(NEXT, {"ids": IDS}, Labelling(shifted=True))


def test_other_labels_and_other_inputs_are_not_refused():
    masked = np.where(IDS % 7 == 0, IDS, -100)
    given = np.where(IDS % 7 == 0, 99, IDS)  # as a masked language model is given them
    same_tokens(masked, {"ids": given, "mask": np.ones((4, 9), np.float32)}, Labelling())
    same_tokens(IDS, {"short": IDS[:, :5]}, Labelling())
