"""Noise moves each element by up to a step of its dtype, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from moh_deploy.frontend.prove.measured_rounding import NoisyRun, noisy_runs
from tests.frontend.traced import plain_trace


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
