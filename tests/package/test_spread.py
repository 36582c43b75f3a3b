import numpy as np
import pytest

from moh_deploy.package import NUMBERS, beside_masks, fingerprint, fingerprint_spread, spread
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


def splitmix64(count: int) -> list[int]:
    """The generator as its authors wrote it, from seed 0."""
    state, numbers, mask = 0, [], 2**64 - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        numbers.append(z ^ (z >> 31))
    return numbers


def test_signs_are_those_of_the_package_format():
    token = np.arange(1.0, 6.0)
    signs = np.array([-1.0 if item >> 63 else 1.0 for item in splitmix64(5 * NUMBERS)])
    expected = (token[:, None] * signs.reshape(5, NUMBERS)).sum(axis=0) / np.sqrt(5)
    found = fingerprint(token.reshape(1, 1, 5))
    np.testing.assert_allclose(found, expected.reshape(1, 1, NUMBERS), rtol=1e-6)
    assert found.dtype == np.float32


def test_size_of_a_difference_is_that_of_the_values():
    draw = np.random.default_rng(0)
    values = draw.standard_normal((2, 50, 96))
    error = 1e-3 * draw.standard_normal(values.shape)
    found = fingerprint_spread(
        fingerprint(values + error).astype(np.float64) - fingerprint(values), fingerprint(values)
    )
    assert found.rms == pytest.approx(1e-3, rel=0.1)
    assert found.rms < found.largest < 3e-3


def test_heads_that_are_exchanged_have_another_fingerprint():
    values = np.random.default_rng(0).standard_normal((1, 1, 4, 8))
    other = values[:, :, [1, 0, 2, 3]]
    first, second = (fingerprint(item.reshape(1, 1, 32)) for item in (values, other))
    assert spread(first - second).rms > 0.3


def test_spread_keeps_nan_and_of_nothing_is_nothing():
    assert np.isnan(spread(np.array([1.0, np.nan])).largest)
    assert spread(np.zeros((0, 3))).rms == 0.0
