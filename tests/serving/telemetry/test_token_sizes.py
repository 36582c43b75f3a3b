"""Tokens of each layer, from the sizes of the inputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from moh_deploy.package import TensorInfo
from moh_deploy.serving.telemetry.counters import TokenCounter

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
