"""What is counted of a served model, by many threads at the same time."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from moh_deploy.package import OnnxPackage, TensorInfo
from moh_deploy.runtime.models import PackageDir
from moh_deploy.serving.metrics import Family
from moh_deploy.serving.served_model import ServedModel, open_served
from moh_deploy.serving.settings import ServingSettings
from moh_deploy.serving.source import ServedRun
from moh_deploy.serving.telemetry import Telemetry, routing
from moh_deploy.serving.telemetry.counters import TokenCounter
from moh_deploy.serving.telemetry.routing import WindowAbout
from tests.edge_case_package import HEADS, inputs, write_edge_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    """Edge cases, with the shapes of gates that an export writes down."""
    return write_edge_package(tmp_path_factory.mktemp("edge") / "package", _with_shapes)


def _with_shapes(model: onnx.ModelProto) -> None:
    shape = ["batch", "seq", HEADS]
    infos = [helper.make_tensor_value_info(f"gates_{i}", TensorProto.FLOAT, shape) for i in (0, 1)]
    model.graph.value_info.extend(infos)


@pytest.fixture
def served(package: OnnxPackage) -> Iterator[ServedModel]:
    settings = ServingSettings("edges", sample_every=4, per_head=True, threads=1)
    served = open_served(PackageDir(package.root), settings)
    yield served
    served.close()


def telemetry(served: ServedModel) -> Telemetry:
    assert served.telemetry is not None
    return served.telemetry


def named(families: tuple[Family, ...], name: str) -> Family:
    return next(family for family in families if family.name == name)


def test_tokens_are_counted_in_every_run_and_gates_in_one_of_so_many(served: ServedModel):
    for _ in range(8):
        served.answer(inputs())
    totals = telemetry(served).totals()
    assert totals.tokens == (80, 80)
    assert totals.requests == 2
    families = served.families()
    sampled = named(families, "moh_sampled_tokens_total")
    assert [sample.value for sample in sampled.samples] == [20, 20]
    assert sampled.samples[0].labels == {"model": "edges", "version": "1", "layer": "blocks.0.attn"}


def test_without_sampling_tokens_are_still_exact(package: OnnxPackage):
    settings = ServingSettings("edges", sample_every=0)
    served = open_served(PackageDir(package.root), settings)
    for _ in range(3):
        served.answer(inputs(batch=1, seq=2))
    totals = telemetry(served).totals()
    assert (totals.tokens, totals.requests) == ((6, 6), 0)


def test_where_the_graph_tells_no_sizes_tokens_are_exact(tmp_path: Path, monkeypatch):
    # Where a process has told onnx what our operators are, it infers more.
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda model: model)
    package = write_edge_package(tmp_path / "package")
    settings = ServingSettings("edges", sample_every=1000)
    served = open_served(PackageDir(package.root), settings)
    for batch, seq in [(1, 2), (2, 3), (1, 2), (1, 2)]:
        served.answer(inputs(batch=batch, seq=seq))
    totals = telemetry(served).totals()
    assert totals.tokens == (12, 12)
    # The first run of each mix of sizes was read.
    assert totals.requests >= 2


def test_metrics_are_of_the_gates(served: ServedModel, package: OnnxPackage):
    for _ in range(4):
        served.answer(package.vectors[0].inputs)
    families = served.families()
    gates = package.vectors[0].gates[0].astype(np.float64)
    activations = named(families, "moh_head_activations_total").samples[:HEADS]
    assert [series.labels["head"] for series in activations] == [str(i) for i in range(HEADS)]
    assert [series.value for series in activations] == (gates != 0).sum(axis=(0, 1)).tolist()
    mass = named(families, "moh_gate_mass_total").samples[:HEADS]
    assert [series.labels["kind"] for series in mass] == ["shared"] * 2 + ["routed"] * 4
    np.testing.assert_allclose(
        [series.value for series in mass], np.abs(gates).sum(axis=(0, 1)), rtol=1e-5
    )
    margins = named(families, "moh_router_margin").samples[0]
    assert margins.buckets[math.inf] == 10
    assert list(margins.buckets.values()) == sorted(margins.buckets.values())


def test_layers_alone_are_shown_unless_heads_are_asked_for(package: OnnxPackage):
    settings = ServingSettings("edges", sample_every=1)
    served = open_served(PackageDir(package.root), settings)
    served.answer(package.vectors[0].inputs)
    activations = named(served.families(), "moh_head_activations_total").samples
    assert [set(series.labels) for series in activations] == [{"model", "version", "layer"}] * 2
    on = [(gates != 0).sum() for gates in package.vectors[0].gates]
    assert [series.value for series in activations] == on


THREADS, RUNS = 8, 100


def count_in_threads(observer: Telemetry, run: ServedRun) -> None:
    """Count as many runs in several threads, which take turns as often as Python allows."""
    started = threading.Barrier(THREADS)

    def count() -> None:
        started.wait()
        for _ in range(RUNS):
            observer.wanted(run.dims)
            observer.saw(run)

    threads = [threading.Thread(target=count) for _ in range(THREADS)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)


@pytest.fixture
def seen(package: OnnxPackage) -> ServedRun:
    """A run with all inner values."""
    observer = Telemetry(package, model="edges")
    given = inputs(batch=1, seq=2)
    rng = np.random.default_rng(0)
    results = {name: rng.random((1, 2, HEADS), np.float32) for name in observer.inner}
    return ServedRun(given, {"batch": 1, "seq": 2}, results, (1,), 0.001, "kernels")


class Slow(int):
    """A number that takes long to be added to: another thread has its turn meanwhile."""

    def __add__(self, other: int) -> Slow:
        time.sleep(1e-5)
        return Slow(int(self) + other)


def test_no_thread_loses_a_count(package: OnnxPackage, seen: ServedRun):
    observer = Telemetry(package, model="edges", sample_every=2)
    observer._requests = Slow(0)
    count_in_threads(observer, seen)
    totals, runs = observer.totals(), THREADS * RUNS
    assert totals.tokens == (2 * runs, 2 * runs)
    assert totals.requests == runs // 2
    columns = observer.reader.layout.columns[0]
    assert totals.counts[columns.tokens] == runs


def test_window_has_each_request_and_other_runs_are_not_in_it(served: ServedModel):
    served.answer(inputs(batch=3), (1, 2))
    telemetry(served).start_window(sample_every=1)
    for _ in range(3):
        served.answer(inputs(batch=3), (1, 2))
    telemetry(served).stop_window()
    served.answer(inputs(batch=3), (1, 2))
    found = telemetry(served).dump_window()
    column = found.layout.columns[0].tokens
    assert found.rows[:, column].tolist() == [5, 10] * 3
    assert found.requests.tolist() == [1] * 6
    assert (np.diff(found.seconds) >= 0).all()


def test_window_is_joined_while_others_count(served: ServedModel, monkeypatch: pytest.MonkeyPatch):
    observer = telemetry(served)

    def beside_a_run(*header: Any) -> WindowAbout:
        assert not observer._lock.locked()  # else the run would wait for ever
        served.answer(inputs(batch=3), (1, 2))
        return WindowAbout(*header)

    observer.start_window(sample_every=1)
    served.answer(inputs(batch=3), (1, 2))
    monkeypatch.setattr(routing, "WindowAbout", beside_a_run)
    found = observer.dump_window()
    assert len(found.rows) == len(found.requests) == len(found.seconds) == 2


def test_run_that_others_want_values_of_is_not_counted_twice(package: OnnxPackage, seen: ServedRun):
    observer = Telemetry(package, model="edges", sample_every=0)
    assert observer.wanted(seen.dims) == ()
    observer.saw(seen)
    assert observer.totals().requests == 0


@pytest.mark.parametrize("every", [1, 3, 16])
def test_one_run_of_each_so_many_is_drawn(package: OnnxPackage, every: int):
    observer = Telemetry(package, model="edges", sample_every=every, seed=3)
    turns = [bool(observer.wanted({"batch": 2, "seq": 5})) for _ in range(every * 20)]
    blocks = np.reshape(turns, (20, every))
    assert (blocks.sum(axis=1) == 1).all()
    # Not always the same one of a block.
    assert every == 1 or len(set(blocks.argmax(axis=1))) > 1


# Tokens of each layer, from the sizes of the inputs.


X = TensorInfo("x", "float32", ("batch", "seq", 8))
MASK = TensorInfo("valid", "bool", ("batch", "seq"))


def graph(body: str) -> onnx.GraphProto:
    text = f"g (float[batch, seq, 8] x) => (float[a, b, c] y) {{ {body} }}"
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>{text}')
    return onnx.shape_inference.infer_shapes(model).graph


KNOWN = graph("gates = Sigmoid (x) y = Identity (gates)")


Run = tuple[dict[str, int], dict[str, np.ndarray]]


def of_sizes(*shape: int) -> Run:
    """Return the sizes of a run, and its inputs: two tokens of the first sample are valid."""
    valid = np.zeros(shape, bool)
    valid[0, :2] = True
    dims = dict(zip(("batch", "seq"), shape, strict=True))
    return dims, {"x": np.zeros((*shape, 8), np.float32), "valid": valid}


def test_tokens_of_every_run_are_counted():
    counter = TokenCounter((X,), KNOWN, [["gates"], ["nothing", "gates"]], None)
    for shape in [(1, 3), (2, 5), (1, 3)]:
        given = of_sizes(*shape)
        assert counter.knows(given[0])
        counter.add(*given)
    assert counter.totals() == (16, 16)
    assert counter.totals() == (16, 16)


@pytest.mark.parametrize(("mask", "tokens"), [("valid", 2), ("not valid", 8)])
def test_padding_is_not_counted(mask: str, tokens: int):
    counter = TokenCounter((X, MASK), KNOWN, [["gates"]], mask)
    given = of_sizes(2, 5)
    counter.add(*given)
    assert counter.totals() == (tokens,)


def test_axis_that_the_graph_does_not_tell_is_looked_up():
    # Tokens that are not 0: no size of an input tells how many.
    body = "n = NonZero (x) t = Transpose <perm = [1, 0]> (n) gates = Cast <to = 1> (t)"
    counter = TokenCounter((X,), graph(f"{body} y = Unsqueeze (gates, x)"), [["gates"]], None)
    given = of_sizes(1, 4)
    assert not counter.knows(given[0])
    # A run that another package answered, whose gates were not seen.
    counter.add(*given)
    assert counter.totals() == (0,)
    counter.learn(given[0], [(1, 4, 3)])
    assert counter.knows(given[0])
    assert not counter.knows(of_sizes(1, 5)[0])
    counter.add(*given)
    assert counter.totals() == (8,)


@pytest.mark.parametrize("runs", [5000])
def test_memory_is_bounded_and_no_run_is_lost(runs: int):
    counter = TokenCounter((X,), KNOWN, [["gates"]], None)
    for seq in range(1, runs + 1):
        counter.add({"batch": 1, "seq": seq}, {})
    assert len(counter._open) <= 4096
    assert counter.totals() == (runs * (runs + 1) // 2,)


def test_size_of_an_expression_is_reckoned():
    text = "g (float[batch, total, 8] x) => (float[a, b, c] y) { gates = Sigmoid (x) y = Neg (x) }"
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>{text}')
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "past + 1"
    x = TensorInfo("x", "float32", ("batch", "past + 1", 8))
    counter = TokenCounter((x,), onnx.shape_inference.infer_shapes(model).graph, [["gates"]], None)
    counter.add({"batch": 2, "past": 4}, {})
    assert counter.totals() == (10,)
