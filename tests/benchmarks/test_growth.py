"""The growth benchmark: its fits, the order of its runs, and small runs of its commands."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.conftest import LoadBenchmark
from tests.nightly import nightly


@pytest.fixture
def growth(load_benchmark: LoadBenchmark) -> ModuleType:
    """The benchmark's module."""
    return load_benchmark("growth")


def test_fit_finds_the_power_between_proportion_and_square(growth: ModuleType):
    sizes = [128, 256, 512]
    for power in (1.0, 1.5, 2.0):
        found = growth.fit(sizes, [7 + 2 * (size / 128) ** power for size in sizes])
        assert found == pytest.approx((7, 2 / 128**power, power))


def test_rate_of_a_server_is_fitted_as_one_that_levels_off(growth: ModuleType):
    limit, missing, power = growth.fit([1, 2, 4], [60, 80, 90], "requests/s")
    assert (limit, missing, power) == pytest.approx((100, -40, -1))


def test_largest_size_is_predicted_before_it_runs(
    growth: ModuleType, capsys: pytest.CaptureFixture[str]
):
    def cost_of(size: int) -> dict[str, float]:
        predicted = "predicted for 16 layers" in capsys.readouterr().err
        assert predicted == (size == 16)
        return {"export s": 10 + size if size < 16 else 52}

    (row,) = growth.grow("layers", 2, cost_of)
    assert row == "| layers from 2: export s | 12 | 14 | 18 | 52 | 26 | -50% | 1.0 |"


@nightly
def test_commands_are_measured_on_models_that_it_makes(
    growth: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(growth, "BASE", {"width": 16, "layers": 1, "tokens": 16})
    monkeypatch.setattr(growth, "REQUESTS", 40)
    work = growth.Work(tmp_path)
    costs = {**work.costs("width", 32), **work.costs("clients", 2), **work.costs("samples", 40)}
    assert list(costs) == [
        *("export s", "export CPU s", "export MiB", "verify s", "verify CPU s", "verify MiB"),
        *("requests/s", "p95 ms", "server cores", "compare s", "compare CPU s", "compare MiB"),
    ]
    assert min(costs.values()) > 0
