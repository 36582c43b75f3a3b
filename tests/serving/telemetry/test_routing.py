"""What routers did in a run, counted request by request."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.serving.telemetry.routing import (
    MARGIN_EDGES,
    CountedLayer,
    CountLayout,
    RoutingReader,
)
from moh_deploy.system.npz import Array
from tests.edge_case_package import HEADS, SHARED, TOP_K, inputs, write_edge_package
from tests.routed_package import write_routed


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_edge_package(tmp_path_factory.mktemp("edge") / "package")


@pytest.fixture(scope="module")
def reader(package: OnnxPackage) -> RoutingReader:
    return RoutingReader.of(package)


def run(package: OnnxPackage, reader: RoutingReader, given: dict[str, Array]) -> dict[str, Array]:
    variant = Variant(kernels="off", extra_outputs=reader.names)
    return open_runner(package, variant).run(given)


def counted_slowly(
    reader: RoutingReader, results: dict[str, Array], layer: int, row: int, valid: Array
) -> dict[str, Array]:
    """Token by token, in float64, of one row of a batch; margins by the formula of the form."""
    gates = results[f"gates_{layer}"][row].astype(np.float64)
    logits = results[f"routed_{layer}"][row].astype(np.float64)
    scores = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    found = {"on": np.zeros(HEADS), "mass": np.zeros(HEADS), "margins": np.zeros(13)}
    for token in range(len(gates)):
        if not valid[token]:
            continue
        found["on"] += gates[token] != 0
        found["mass"] += np.abs(gates[token])
        ranked = sorted(scores[token], reverse=True)
        margin = ranked[TOP_K - 1] - ranked[TOP_K]
        found["margins"][[margin <= edge for edge in MARGIN_EDGES].index(True)] += 1
    return found


@pytest.mark.parametrize("mask", [None, "valid", "not valid"])
def test_counts_are_those_of_a_slow_reference(
    package: OnnxPackage, reader: RoutingReader, mask: str | None
):
    given = inputs(batch=6, seq=7)
    reader = replace(reader, valid_tokens=mask)
    results = run(package, reader, given)
    counted = reader.count(given, results, (1, 2, 3))
    assert len(counted) == 3
    valid = np.ones((6, 7), bool)
    if mask is not None:
        valid = ~given["valid"] if mask.startswith("not") else given["valid"]
    for number, samples in enumerate([(0,), (1, 2), (3, 4, 5)]):
        row = counted[number]
        for layer, columns in enumerate(reader.layout.columns):
            slow = [counted_slowly(reader, results, layer, i, valid[i]) for i in samples]
            assert row[columns.tokens] == valid[list(samples)].sum()
            assert row[columns.on].tolist() == sum(item["on"] for item in slow).tolist()
            assert row[columns.margins].tolist() == sum(item["margins"] for item in slow).tolist()
            np.testing.assert_allclose(row[columns.mass], sum(item["mass"] for item in slow))
            assert row[columns.nonfinite] == 0


def test_layers_of_one_kind_are_counted_as_each_alone(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    reader = RoutingReader.of(package)
    given = {"x": np.random.default_rng(0).standard_normal((3, 7, 24)).astype(np.float32)}
    results = run(package, reader, given)
    (row,) = reader.count(given, results, (3,))
    for layer, columns in enumerate(reader.layout.columns):
        gates = results[f"gates_{layer}"]
        assert row[columns.on].tolist() == (gates != 0).sum(axis=(0, 1)).tolist()
        assert not columns.layer.has_margins  # its router is of plain operators


def test_nonfinite_gates_are_counted_and_are_no_mass(reader: RoutingReader):
    gates = np.ones((2, 3, HEADS), np.float32)
    gates[1, 2, :2] = np.nan, np.inf
    logits = np.arange(4.0, dtype=np.float32) * np.ones((2, 3, 1), np.float32)
    logits[1, 2, 0] = np.nan
    results = {"gates_0": gates, "gates_1": gates, "routed_0": logits}
    results["routed_1"] = np.zeros((2, 3, HEADS), np.float32)
    counted = reader.count({}, results, (1, 1))
    first = reader.layout.columns[0]
    assert counted[:, first.nonfinite].tolist() == [0, 2]
    assert counted[:, first.on].sum(axis=1).tolist() == [18, 16]
    assert counted[:, first.mass].sum(axis=1).tolist() == [18, 16]
    # A margin among NaN is none.
    assert counted[:, first.margins].sum(axis=1).tolist() == [3, 2]


def test_requests_that_cannot_be_told_apart_are_one_row(reader: RoutingReader):
    # Layers over windows: four windows of three tokens of each of two samples.
    gates = np.ones((8, 3, HEADS), np.float32)
    logits = [np.ones((8, 3, size), np.float32) for size in (HEADS - SHARED, HEADS)]
    results = {"gates_0": gates, "gates_1": gates, "routed_0": logits[0], "routed_1": logits[1]}
    counted = reader.count({}, results, (1, 1))
    assert len(counted) == 1
    assert counted[0, reader.layout.columns[0].tokens] == 24


def test_request_without_samples_counts_nothing(package: OnnxPackage, reader: RoutingReader):
    given = inputs(batch=3)
    counted = reader.count(given, run(package, reader, given), (1, 0, 2))
    tokens = [row[reader.layout.columns[0].tokens] for row in counted]
    assert tokens == [5, 0, 10]
    assert not counted[1].any()


def test_gates_in_bfloat16_are_read(reader: RoutingReader):
    import ml_dtypes

    gates = np.full((1, 2, HEADS), 0.5, ml_dtypes.bfloat16)
    logits = {f"routed_{i}": np.ones((1, 2, n), np.float32) for i, n in enumerate((4, 6))}
    counted = reader.count({}, {"gates_0": gates, "gates_1": gates, **logits}, (1,))
    assert counted[0, reader.layout.columns[0].mass].tolist() == [1.0] * HEADS


# The columns of a row of counts.


def test_columns_of_all_layers_fill_a_row_once():
    layers = (CountedLayer("a", 4, 1, True), CountedLayer("b", 2, None, False))
    layout = CountLayout(layers)
    taken: list[int] = []
    for columns in layout.columns:
        taken += [columns.tokens, columns.nonfinite, columns.margin_sum]
        for part in (columns.on, columns.mass, columns.margins):
            taken += range(part.start, part.stop)
        assert (
            list(range(columns.all.start, columns.all.stop))
            == taken[-(columns.all.stop - columns.tokens) :]
        )
    assert taken == list(range(layout.width))
    assert layout.width == sum(3 + 2 * layer.num_heads + len(MARGIN_EDGES) for layer in layers)


def test_model_without_layers_has_no_columns():
    assert CountLayout(()).width == 0
