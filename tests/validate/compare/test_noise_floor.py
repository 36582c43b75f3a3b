import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.graph.forced_gates import GateTypes
from moh_deploy.graph.weight_noise import ROUNDING_STEP
from moh_deploy.package import LayerRounding, OnnxPackage, Rounding, Spread, VectorSet
from moh_deploy.runtime.base import Description
from moh_deploy.runtime.variants import Noise
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.layer_parity import LayerValuesFound
from moh_deploy.validate.compare.noise_floor import (
    DRAWS,
    NO_FLOOR,
    STEPS,
    NoisyModel,
    NoisyResults,
    recorded_floor,
)
from tests.handmade_package import MANIFEST
from tests.kernel_library import NO_KERNELS

EXACT = [1.0, 2.0, math.inf, 0.0]


@dataclass
class Drawn:
    """A noisy model that returns one list after the other; without noise, the exact one."""

    draws: list[list[float]]
    asked: list[float] = field(default_factory=list)

    def describe(self) -> Description:
        return Description("a runtime", NO_KERNELS)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        step = float(inputs[ROUNDING_STEP])
        self.asked.append(step)
        return {"y": np.asarray(self.draws.pop() if step else EXACT, np.float32)}


@dataclass
class Opened:
    """Variants that were opened before."""

    model: Drawn

    def why_not_forced(self) -> None:
        return None

    def forced(self, gates: GateTypes, inner: Sequence[str] = ()) -> Drawn:
        return self.model

    def noisy(self, noise: Noise, gates: GateTypes, inner: Sequence[str] = ()) -> Drawn | None:
        return self.model if noise == "weights" else None


def floor_of(*draws: list[float], only_chosen: bool = False) -> float:
    model = Drawn(list(draws))
    found = NoisyModel(Opened(model), {}, (), "float16").results({})
    assert model.asked == [0.0, *[STEPS["float16"]] * DRAWS]
    return found.move("y", only_chosen=only_chosen).largest


def test_floor_is_the_largest_difference_of_all_draws():
    more = [1.0, 2.25, math.inf, 0.0]
    assert floor_of(EXACT, more, EXACT) == pytest.approx(0.25)
    assert floor_of(EXACT, EXACT, EXACT) == 0.0


def test_numbers_that_noise_makes_infinite_have_no_floor():
    assert floor_of(EXACT, [math.nan, 2.0, math.inf, 0.0], EXACT) == math.inf


def test_heads_that_noise_chose_otherwise_do_not_count_among_gates():
    flipped = [0.0, 2.5, math.inf, 1.0]
    assert floor_of(EXACT, flipped, EXACT, only_chosen=True) == pytest.approx(0.5)
    assert floor_of(EXACT, flipped, EXACT) == pytest.approx(1.0)


def test_masks_do_not_make_the_floor_of_what_is_beside_them():
    exact = np.array([[-1e9, 1.0], [0.5, 0.25]], np.float32)
    noisy = exact * np.float32(1 + 1e-6)
    results = NoisyResults({"y": exact}, [{"y": noisy}])
    assert results.move("y").largest == pytest.approx(1e-6, rel=0.1)
    assert results.of_layer(shown).scores == results.move("y")
    package = OnnxPackage(Path("package"), MANIFEST, ())
    rounding = Rounding({"y": Spread(1e-7, 1e-6)}, ())
    floor = recorded_floor(package, rounding, ANY_SIZE, {"y": exact}).outputs["y"]
    assert floor.largest == pytest.approx(1e-6)


def shown(results: Mapping[str, Array]) -> LayerValuesFound:
    return LayerValuesFound(results["y"], results["y"], None)


def test_rounding_of_weights_and_of_results_adds_up():
    exact, noise, rounded = (np.full((1, 2), value) for value in (1.0, 1.9, 1.4))
    found = NoisyResults({"y": exact}, [{"y": noise}], {"y": rounded})
    assert found.move("y").rms == pytest.approx(0.5)  # 0.9 / 3 and 0.4
    assert found.of_layer(shown).gates.largest == pytest.approx(0.5)


def test_floor_of_a_layer_is_the_spread_over_all_draws():
    gates = np.array([[1.0, 0.0], [0.5, 0.5]])  # [T, H]
    drawn = [{"y": gates + move} for move in (0.0, 0.3, -0.1)]
    floor = NoisyResults({"y": gates}, drawn).of_layer(shown)
    assert floor.scores.largest == pytest.approx(0.3)
    assert floor.scores.rms == pytest.approx(math.sqrt((0.09 + 0.01) / 3))
    # A closed head neither counts nor dilutes what the others move.
    assert floor.gates.rms == pytest.approx(floor.scores.rms)
    assert floor.attention is None


ANY_SIZE = VectorSet({}, {}, {}, (), ())


def _run(batch: int, seq: int) -> VectorSet:
    return VectorSet({"batch": batch, "seq": seq}, {}, {}, (np.zeros((batch, seq, 4)),), ())


@pytest.mark.parametrize(
    ("batch", "seq", "kv_len", "growth"),
    [
        (2, 8, 8, 1.0),
        (2, 64, 8, 1.0),  # as few terms as rounding a step covers
        (2, 1024, 8, 4.0),
        (64, 1024, 8, 4.0),  # samples are no terms
        (2, 32, 256, 2.0),  # the example was long, this is four times as long
        (2, 4, 256, 1.0),  # a shorter run is not held to less than was measured
        (2, 1024, None, math.sqrt(2)),
    ],
)
def test_floor_grows_with_the_root_of_the_terms_of_a_sum(
    batch: int, seq: int, kv_len: int | None, growth: float
):
    rounding = Rounding({"y": Spread(1e-7, 1e-6)}, (LayerRounding(None, Spread(1e-7, 1e-6), None),))
    (layer,) = MANIFEST.layers
    manifest = replace(MANIFEST, layers=(replace(layer, kv_len=kv_len),))
    package = OnnxPackage(Path("package"), manifest, (_run(2, 8),))
    floor = recorded_floor(package, rounding, _run(batch, seq), {"y": np.array([1.0, -1.0])})
    assert floor.outputs["y"].rms == pytest.approx(growth * 1e-7)
    assert floor.layers[0].gates.largest == pytest.approx(growth * 1e-6)


def test_floor_of_an_export_is_scaled_to_what_is_expected():
    layer = LayerRounding(None, Spread(1e-7, 1e-6), None)
    rounding = Rounding({"y": Spread(1e-7, 1e-6)}, (layer,))
    package = OnnxPackage(Path("package"), MANIFEST, ())
    floor = recorded_floor(package, rounding, ANY_SIZE, {"y": np.array([20.0, -20.0])})
    assert floor.outputs["y"].largest == pytest.approx(2e-5)
    assert floor.outputs["y"].rms == pytest.approx(2e-6)
    assert floor.of_layer(0) == layer
    # What is small here by cancellation is moved as far as what was large in the example.
    example = VectorSet({}, {}, {"y": np.array([40.0, -40.0])}, (), ())
    package = OnnxPackage(Path("package"), MANIFEST, (example,))
    floor = recorded_floor(package, rounding, ANY_SIZE, {"y": np.array([20.0, -20.0])})
    assert floor.outputs["y"].largest == pytest.approx(4e-5)
    assert NO_FLOOR.of_layer(0) is None
