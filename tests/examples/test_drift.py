"""Drift of routing on real images: unchanged traffic is let pass, other traffic is found."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.serving.drift.distances import distances, limits
from moh_deploy.serving.telemetry.routing import Counts, RoutingReader
from tests.examples.digits_demo import DemoRun
from tests.nightly import nightly

RATE = 0.001
Images = NDArray[np.float32]


@dataclass(frozen=True)
class Digits:
    """The digits model, and images that it was not trained on."""

    root: Path

    @cached_property
    def images(self) -> Images:
        return np.load(self.root / "held-out.npz")["images"]

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        return np.load(self.root / "labels.npy")

    @cached_property
    def package(self) -> OnnxPackage:
        return OnnxPackage.open(self.root / "package")

    @cached_property
    def reader(self) -> RoutingReader:
        return RoutingReader.of(self.package)

    @cached_property
    def counts(self) -> Counts:
        """Of each held-out image as a request, [360, columns]."""
        return self.counted(self.images)

    def counted(self, images: Images) -> Counts:
        inputs = {"images": images.astype(np.float32)}
        variant = Variant(threads=1, extra_outputs=self.reader.names)
        results = open_runner(self.package, variant).run(inputs)
        return self.reader.count(inputs, results, (1,) * len(images))

    def alarms(
        self, reference: Counts, traffic: Counts, window: int, windows: int, shares: object = None
    ) -> int:
        """Count windows that alarm, drawn from the requests of some traffic."""
        layout = self.reader.layout
        far = limits(layout, reference, window, rate=RATE, seed=0)
        even = np.full(len(traffic), 1 / len(traffic))
        drawn = even if shares is None else np.asarray(shares) / np.sum(shares)
        totals = np.random.default_rng(1).multinomial(window, drawn, size=windows) @ traffic
        found = distances(layout, totals, reference.sum(axis=0)) > far
        return int(found.any(axis=1).sum())


@pytest.fixture(scope="module")
def digits(digits_demo: DemoRun) -> Digits:
    assert digits_demo.process.returncode == 0, digits_demo.process.stderr
    return Digits(digits_demo.work_dir)


@nightly
def test_unchanged_traffic_is_let_pass(digits: Digits):
    order = np.random.default_rng(2).permutation(len(digits.counts))
    halves = digits.counts[order[:180]], digits.counts[order[180:]]
    # One alarm is expected; more than 5 have a probability of 0.06 %.
    assert digits.alarms(*halves, window=128, windows=1000) <= 5


@nightly
@pytest.mark.parametrize("window", [64, 256, 512])
@pytest.mark.parametrize("seed", range(4))
def test_ten_thousand_windows_keep_the_rate(digits: Digits, window: int, seed: int):
    # A recording of 1000 requests, and windows of the same traffic. Of 10 alarms on average, 17
    # are exceeded with a probability of 1.4 %.
    chosen = np.random.default_rng(seed).integers(len(digits.counts), size=1000)
    found = digits.alarms(digits.counts[chosen], digits.counts, window, 10_000)
    assert found <= 17


SHIFTS: dict[str, Callable[[Images], Images]] = {
    "noise": lambda x: x + np.random.default_rng(0).normal(0, 0.5, x.shape),
    "no digits": lambda x: np.random.default_rng(0).random(x.shape),
    "inverted": lambda x: 1 - x,
}


@nightly
@pytest.mark.parametrize("shift", SHIFTS)
def test_other_images_are_found_within_a_window(digits: Digits, shift: str):
    other = digits.counted(SHIFTS[shift](digits.images))
    assert digits.alarms(digits.counts, other, window=256, windows=200) == 200


def found_with_half(digits: Digits, digit: int) -> int:
    """Count of 200 windows those that alarm where a digit is half of the traffic."""
    is_it = digits.labels == digit
    shares = np.where(is_it, 0.5 / is_it.sum(), 0.5 / (~is_it).sum())
    return digits.alarms(digits.counts, digits.counts, window=512, windows=200, shares=shares)


@nightly
def test_digit_that_is_half_of_the_traffic_is_found(digits: Digits):
    assert found_with_half(digits, 0) == 200


@nightly
def test_most_digits_are_routed_otherwise_than_the_rest(digits: Digits):
    # After three epochs of training, routing does not tell each digit from the others yet.
    found = [found_with_half(digits, digit) for digit in range(10)]
    assert found.count(200) >= 6
