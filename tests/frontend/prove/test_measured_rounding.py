from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from moh_deploy.frontend.fx.graph import op
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.prove.measured_rounding import (
    NoisyRun,
    divides_by_deviation,
    noisy_runs,
    of_all_runs,
    sum_length,
)
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
    (layer,) = rounding.layers
    assert layer.scores is not None
    assert layer.attention is not None
    for moved in (layer.scores, layer.gates, layer.attention, rounding.outputs["y"]):
        assert 1e-9 < moved.rms <= moved.largest < 1e-5


def test_noise_is_the_same_in_every_export():
    assert recorded(build().eval()).rounding == recorded(build().eval()).rounding


class ByDeviation(SmallMoH):
    """The logits of MoH-LLaMA3's router, with two routed heads."""

    def gates(self, x: Tensor) -> Tensor:
        norm = self.routed(x)
        probabilities = (norm / norm.std(-1, keepdim=True)).softmax(-1)
        best = nn.functional.one_hot(probabilities.argmax(-1), 2)
        return torch.cat([torch.ones_like(best), best], -1).to(x.dtype)


def test_ill_conditioned_routers_are_measured_in_all_runs():
    torch.manual_seed(0)
    model = ByDeviation().eval()
    program = normalize(plain_trace(model, X))
    (rewrite,) = insert(program, recognize(program))
    assert divides_by_deviation(rewrite)
    first = recorded(model).rounding
    with torch.no_grad():  # both heads of each token differ by a thousandth
        model.routed.weight[1] = 1.001 * model.routed.weight[0]
    second = recorded(model).rounding
    assert second.layers[0].scores.rms > 50 * first.layers[0].scores.rms
    joined = of_all_runs([first, None, second])
    assert joined.layers[0].scores == second.layers[0].scores
    assert (joined.outputs, joined.layers[0].attention) == (
        first.outputs,
        first.layers[0].attention,
    )

    program = normalize(plain_trace(build().eval(), X))
    assert not any(map(divides_by_deviation, insert(program, recognize(program))))


def test_half_precision_moves_further():
    low = recorded(build().eval().bfloat16(), X.bfloat16()).rounding
    full = recorded(build().eval()).rounding
    assert low.outputs["y"].rms > 1e3 * full.outputs["y"].rms


def test_masks_in_an_output_do_not_make_its_rounding():
    class Masked(SmallMoH):
        def forward(self, x):
            y = super().forward(x) + 100 - 100  # loses two digits, which the mask does not
            return y.masked_fill(torch.arange(y.shape[-1]) < 1, -1e9)

    rounding = recorded(Masked().eval()).rounding
    assert rounding.outputs["y"].rms > 1e-6


def test_gates_that_a_model_returns_are_rounded_like_other_outputs():
    class WithGates(SmallMoH):
        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            gates = self.gates(x)
            return self.out((y * gates.unsqueeze(-1)).flatten(2)), gates

    rounding = recorded(WithGates().eval(), outputs=["y", "gates"]).rounding
    assert 1e-9 < rounding.outputs["gates"].rms < 1e-5


def of_infinity(x: Tensor) -> Tensor:
    return x + torch.full((5, 8), float("-inf")).exp()


def multiplied(x: Tensor) -> Tensor:
    """Hides nothing by the lowest number, as transformers writes windows."""
    lowest = x * 0 + torch.finfo(x.dtype).min
    return x + lowest.amin() * (x > 100)


@pytest.mark.parametrize("masked", [of_infinity, multiplied])
def test_noise_makes_no_infinity_and_takes_none_away(masked: Callable[[Tensor], Tensor]):
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build()

        def forward(self, x: Tensor) -> Tensor:
            return masked(self.inner(x))

    rounding = recorded(Masked().eval()).rounding
    assert 1e-9 < rounding.outputs["y"].rms <= rounding.outputs["y"].largest < 1e-5


@pytest.mark.parametrize(
    "kth",
    [
        lambda scores: scores.topk(2, dim=-1).values[..., -1:],
        lambda scores: scores.sort(dim=-1, descending=True).values[..., 1:2],
        lambda scores: scores.kthvalue(3, dim=-1, keepdim=True).values,
        lambda scores: scores.gather(-1, scores.argsort(-1, descending=True)[..., 1:2]),
        lambda scores: scores.amax(-1, keepdim=True),
    ],
    ids=["topk", "sort", "kthvalue", "gather", "amax"],
)
def test_a_score_is_as_high_as_itself_with_noise(kth: Callable[[Tensor], Tensor]):
    class Threshold(nn.Module):
        """Chooses among channels, where recognition finds no gates that could be fed."""

        def forward(self, x: Tensor) -> Tensor:
            scores = x.softmax(-1)
            return scores * (scores >= kth(scores))

    runs = runs_of(Threshold(), X, draws=3)
    for run in runs:
        assert 0 < (run.outputs[0] - Threshold()(X)).abs().max() < 1e-6


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
    assert wide.outputs["y"].rms > 2 * narrow.outputs["y"].rms


def runs_of(model: nn.Module, x: Tensor, *, draws: int = 1) -> list[NoisyRun]:
    program = plain_trace(model.eval(), x)
    return list(noisy_runs(program, [x], watched=(), fed={}, draws=draws))


class Negated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_noise_is_even_and_of_one_step(dtype: torch.dtype):
    x = torch.rand(100, 1001, generator=torch.Generator().manual_seed(0)).to(dtype) + 1
    first, second = (run.outputs[0] for run in runs_of(Negated(), x, draws=2))
    assert first.dtype == dtype
    assert not torch.equal(first, second)
    shares = (first.double() + x.double()) / (torch.finfo(dtype).eps * x.double())
    assert shares.abs().max() <= 1.5  # a step and what rounding to the dtype adds
    assert abs(float(shares.mean())) < 0.01
    assert 0.5 < float(shares.square().mean().sqrt()) < 0.7  # 1/sqrt(3), rounded


def test_noise_of_each_eighth_element_is_its_own():
    x = torch.ones(100_000, dtype=torch.float64)
    (run,) = runs_of(Negated(), x)
    noise = (run.outputs[0] + 1).reshape(-1, 8)
    correlation = torch.corrcoef(noise.T)
    assert (correlation - torch.eye(8)).abs().max() < 0.05


def test_what_is_not_finite_stays_and_its_neighbours_move():
    x = torch.ones(64, 128)
    x[0], x[1], x[2] = float("inf"), -float("inf"), float("nan")
    (run,) = runs_of(Negated(), x)
    y = run.outputs[0]
    assert (y[0] == -float("inf")).all()
    assert (y[1] == float("inf")).all()
    assert y[2].isnan().all()
    assert y[3:].isfinite().all()
    assert (y[3:] != -1).any()


def test_infinity_in_a_row_leaves_the_noise_of_the_others_as_it_is():
    class Products(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.transpose(0, 1)

    x = torch.ones(64, 256)
    x[0] = float("inf")
    (run,) = runs_of(Products(), x)
    rows = run.outputs[0][1:]
    assert rows[:, 0].isinf().all()
    assert 0 < (rows[:, 1:] - 256).abs().max() < 1e-3


def test_product_of_a_tensor_with_itself_takes_noise():
    class Similarities(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, x)

    (run,) = runs_of(Similarities(), torch.ones(64, 256))
    assert 0 < (run.outputs[0] - 256).abs().max() < 1e-3


def test_what_is_moved_can_be_viewed_as_before():
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.transpose(0, 1) + 1).transpose(0, 1).view(-1)  # [A, B] lies as it did

    x = torch.ones(3, 5)
    (run,) = runs_of(Turned(), x)
    assert run.outputs[0].shape == (15,)
    assert (run.outputs[0] - 2).abs().max() < 1e-6


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (7,)])
def test_any_shape_takes_noise(shape: tuple[int, ...]):
    (run,) = runs_of(Negated(), torch.ones(shape))
    assert run.outputs[0].shape == shape


def test_whole_numbers_stay():
    (run,) = runs_of(Negated(), torch.arange(5))
    assert torch.equal(run.outputs[0], -torch.arange(5))
