from __future__ import annotations

import numpy as np
import pytest

from moh_deploy.package import beside_masks
from moh_deploy.system.npz import Array


def held(reference: Array, error: float) -> tuple[list[float], list[float]]:
    errors, known = beside_masks(np.full(reference.shape, error), reference)
    return errors.tolist(), known.tolist()


def test_error_of_a_mask_is_a_share_of_the_mask():
    reference = np.array([-1e9, 20.0, np.inf, np.finfo(np.float32).min])
    errors, known = held(reference, 64.0)
    assert errors == pytest.approx([64e-9 * 20, 64.0, 64.0, 0.0])
    assert known == [0.0, 20.0, 0.0, 0.0]


def test_what_is_all_as_large_or_exact_has_no_masks():
    assert held(np.array([2e8, np.inf]), 1.0) == ([1.0, 1.0], [2e8, 0.0])
    assert held(np.array([2**60, 3]), 1.0) == ([1.0, 1.0], [2**60, 3])
