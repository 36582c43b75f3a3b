from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moh_deploy.frontend.fx.graph import op
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.prove.measured_rounding import sum_length
from moh_deploy.frontend.prove.record import Recording, record
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import insert
from moh_deploy.frontend.rewrite.rewritten import view_attention
from tests.frontend.traced import plain_trace
from tests.small_moh import SmallMoH, build

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def recorded(model: nn.Module, x: Tensor = X, outputs: Sequence[str] = ("y",)) -> Recording:
    program = normalize(plain_trace(model, x))
    rewrites = view_attention(program, insert(program, recognize(program)))
    return record(program, rewrites, [x], rounding_of=outputs)


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


def test_masks_in_an_output_do_not_make_its_rounding():
    class Masked(SmallMoH):
        def forward(self, x):
            y = super().forward(x) + 100 - 100  # loses two digits, which the mask does not
            return y.masked_fill(torch.arange(y.shape[-1]) < 1, -1e9)

    rounding = recorded(Masked().eval()).rounding
    assert rounding is not None
    assert rounding.outputs["y"].rms > 1e-6


def test_gates_that_a_model_returns_are_rounded_like_other_outputs():
    class WithGates(SmallMoH):
        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            gates = self.gates(x)
            return self.out((y * gates.unsqueeze(-1)).flatten(2)), gates

    rounding = recorded(WithGates().eval(), outputs=["y", "gates"]).rounding
    assert rounding is not None
    assert 1e-9 < rounding.outputs["gates"].rms < 1e-5


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


def test_products_are_sums_of_as_many_terms_as_they_contract():
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(8, 3)
            self.convolution = nn.Conv1d(5, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores = x @ x.transpose(1, 2)  # [B, S, S]
            mixed = nn.functional.scaled_dot_product_attention(scores, scores, x.repeat(1, 1, 2))
            return self.map(x).sum() + self.convolution(x).sum() + mixed.sum()

    nodes = plain_trace(Products().eval(), X).graph.nodes
    lengths = {op(node): sum_length(node) for node in nodes if node.op == "call_function"}
    assert lengths["linear"] == lengths["matmul"] == 8
    assert lengths["conv1d"] == 15
    assert lengths["scaled_dot_product_attention"] == 16
    assert lengths["sum"] == 1


def test_long_sums_move_further_and_not_only_where_they_are_large():
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build()
            self.up, self.down = nn.Linear(8, 4096), nn.Linear(4096, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(self.inner(x)))

    torch.manual_seed(0)
    wide, narrow = (recorded(model.eval()).rounding for model in (Wide(), build()))
    assert wide is not None
    assert narrow is not None
    assert wide.outputs["y"].rms > 2 * narrow.outputs["y"].rms
