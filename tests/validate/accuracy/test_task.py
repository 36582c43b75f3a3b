from contextlib import nullcontext

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.validate.accuracy.task import Labelling, same_tokens

IDS = np.random.default_rng(0).integers(50, size=(4, 9))
NEXT = np.concatenate([IDS[:, 1:], np.full((4, 1), -100)], axis=1)


PADDED = np.where(np.arange(9) > 6, -100, IDS)
MASKED = np.where(IDS % 7 == 0, IDS, -100)
# As a masked language model is given them.
GIVEN = {"ids": np.where(IDS % 7 == 0, 99, IDS), "mask": np.ones((4, 9), np.float32)}


@pytest.mark.parametrize(
    ("labels", "inputs", "shifted", "refused"),
    [
        (IDS, {"ids": IDS}, False, r"labels are the tokens of input 'ids'[^$]*--shift-labels"),
        (PADDED, {"ids": IDS}, False, "labels are the tokens of input 'ids'"),
        (IDS, {"ids": IDS}, True, None),
        (PADDED, {"ids": IDS}, True, None),
        (NEXT, {"ids": IDS}, False, None),
        (NEXT, {"ids": IDS}, True, "shifted by one already"),
        (MASKED, GIVEN, False, None),
        (IDS, {"short": IDS[:, :5]}, False, None),
    ],
)
def test_tokens_are_labels_where_each_is_scored_with_the_next(labels, inputs, shifted, refused):
    expected = pytest.raises(ConfigError, match=refused) if refused else nullcontext()
    with expected:
        same_tokens(labels, inputs, Labelling(shifted=shifted))
