import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.frontend.recognize.aggregated.form import Window, windows_like

odd = st.sampled_from([1, 3, 5])
size = st.integers(1, 7)


@given(size, size, odd, odd)
def test_neighbours_are_those_of_unfold(height: int, width: int, high: int, wide: int):
    number = torch.arange(height * width).view(1, 1, height, width).float() + 1
    windows = F.unfold(number, (high, wide), padding=(high // 2, wide // 2))[0].t().long() - 1
    assert torch.equal(Window(height, width, high, wide).neighbours(), windows)


@given(size, size, odd, odd, st.randoms(use_true_random=False))
def test_windows_are_told_in_any_order_of_their_taps(height, width, high, wide, random):
    window = Window(height, width, high, wide)
    shuffled = list(range(high * wide))
    random.shuffle(shuffled)
    given_neighbours = window.neighbours()[:, shuffled]
    found = windows_like(given_neighbours)
    assert found
    for window_found, order in found:
        assert torch.equal(window_found.neighbours()[:, order], given_neighbours)


def test_repeated_border_is_told_apart_by_the_inside_only():
    padded = F.pad(torch.arange(20.0).view(1, 1, 4, 5), (1, 1, 1, 1), mode="replicate")
    found, order = windows_like(F.unfold(padded, 3)[0].t().long())[0]
    assert found == Window(4, 5, 3, 3)
    assert order.tolist() == list(range(9))


@pytest.mark.parametrize("options", [{"dilation": 2, "padding": 2}, {"padding": (1, 0)}])
def test_other_windows_are_none(options):
    number = F.pad(
        torch.arange(20.0).view(1, 1, 4, 5) + 1, (0, 0) if "dilation" in options else (0, 2)
    )
    neighbours = F.unfold(number, 3, **options)[0].t().long() - 1
    assert windows_like(neighbours) == []
