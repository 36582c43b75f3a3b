from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from moh_deploy.backends.layer_runs import LayerImpl, LayerRun
from moh_deploy.backends.runner import KernelUse
from moh_deploy.npz import Array
from moh_deploy.package import ROUNDING_STEP
from moh_deploy.validate.noise_floor import DRAWS, STEPS, measure_floor
from tests.kernel_library import NO_KERNELS

EXACT = [1.0, 2.0, math.inf, 0.0]


@dataclass
class Drawn:
    """A noisy model that returns one list after the other; without noise, the exact one."""

    draws: list[list[float]]
    asked: list[float] = field(default_factory=list)
    layer_impl: Mapping[str, LayerImpl] = field(default_factory=dict)
    layer_runs: tuple[LayerRun, ...] = ()
    kernels: KernelUse = NO_KERNELS

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        step = float(inputs[ROUNDING_STEP])
        self.asked.append(step)
        return {"y": np.asarray(self.draws.pop() if step else EXACT, np.float32)}


def floor_of(*draws: list[float], gates: frozenset[str] = frozenset()) -> float:
    model = Drawn(list(draws))
    found = measure_floor(model, {}, "float16", gates=gates)
    assert model.asked == [0.0, *[STEPS["float16"]] * DRAWS]
    return found["y"]


def test_floor_is_the_largest_difference_of_all_draws():
    more = [1.0, 2.25, math.inf, 0.0]
    assert floor_of(EXACT, more, EXACT) == pytest.approx(0.25)
    assert floor_of(EXACT, EXACT, EXACT) == 0.0


def test_numbers_that_noise_makes_infinite_have_no_floor():
    assert floor_of(EXACT, [math.nan, 2.0, math.inf, 0.0], EXACT) == math.inf


def test_heads_that_noise_chose_otherwise_do_not_count_among_gates():
    flipped = [0.0, 2.5, math.inf, 1.0]
    assert floor_of(EXACT, flipped, EXACT, gates=frozenset({"y"})) == pytest.approx(0.5)
    assert floor_of(EXACT, flipped, EXACT) == pytest.approx(1.0)
