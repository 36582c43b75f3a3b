from pathlib import Path

import onnx
import pytest

from moh_deploy.validate.bisection.bisection import flops_share
from moh_deploy.validate.bisection.divergence import InnerValue
from moh_deploy.validate.bisection.places import ForcedModel, ModelGraph, graph_of
from tests.handmade_package import write_package

GRAPH = """
g (float[3, 2] x, float[3, 5] w, float[5, 7] v) => (float[2, 7] c)
{ a = Gemm <transA = 1> (x, w)
  b = Relu(a)
  c = MatMul(b, v) }
"""
SHAPES = {"x": (3, 2), "w": (3, 5), "v": (5, 7), "a": (2, 5), "b": (2, 5), "c": (2, 7)}


def test_share_of_products_is_by_their_terms():
    graph = ModelGraph(onnx.parser.parse_graph(GRAPH))
    values = {name: InnerValue(name, 0.0, 1.0, shape, True) for name, shape in SHAPES.items()}
    assert flops_share(graph, values, ["a"]) == pytest.approx(60 / (60 + 140))
    assert flops_share(graph, values, ["b"]) == 0.0
    assert flops_share(graph, {}, ["a"]) is None


def test_attention_counts_by_its_layer(tmp_path: Path):
    package = write_package(tmp_path / "package")
    graph = graph_of(ForcedModel(package, {}))
    (attention,) = (node for node in graph.nodes if node.name == package.manifest.layers[0].node)
    assert flops_share(graph, {}, attention.output) == 1.0
