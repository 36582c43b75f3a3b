from __future__ import annotations

import torch
from torch import Tensor, nn

from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.record import Recording, record
from moh_deploy.frontend.rewrite import insert
from moh_deploy.frontend.rewrite.attention_view import view_attention
from tests.frontend.traced import plain_trace
from tests.small_moh import build

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def recorded(model: nn.Module, x: Tensor = X) -> Recording:
    program = normalize(plain_trace(model, x))
    rewrites = view_attention(program, insert(program, recognize(program)))
    return record(program, rewrites, [x], rounding_of=["y"])


def test_noise_is_of_the_size_of_rounding():
    rounding = recorded(build().eval()).rounding
    assert rounding is not None
    (layer,) = rounding.layers
    assert layer.scores is not None
    assert layer.attention is not None
    for moved in (layer.scores, layer.gates, layer.attention, rounding.outputs["y"]):
        assert 1e-9 < moved.rms <= moved.largest < 1e-5


def test_noise_is_the_same_in_every_export():
    assert recorded(build().eval()).rounding == recorded(build().eval()).rounding


def test_half_precision_moves_further():
    low = recorded(build().eval().bfloat16(), X.bfloat16()).rounding
    full = recorded(build().eval()).rounding
    assert low is not None
    assert full is not None
    assert low.outputs["y"].rms > 1e3 * full.outputs["y"].rms


def test_masks_of_infinity_stay():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build()

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.full((5, 8), float("-inf"))
            return self.inner(x) + hidden.exp()

    rounding = recorded(Masked().eval()).rounding
    assert rounding is not None
    assert rounding.outputs["y"].largest < 1e-5
