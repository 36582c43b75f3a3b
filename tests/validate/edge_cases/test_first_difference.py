"""The first layer that differs is named, whatever later ones choose because of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from moh_deploy.package import OnnxPackage
from moh_deploy.validate.edge_cases.input_run import first_difference
from moh_deploy.validate.edge_cases.source import Sides, body_source
from tests.edge_case_package import write_edge_package
from tests.nightly import sampled
from tests.validate.edge_cases.planted_faults import Fault, Site, in_layer, planted


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_edge_package(tmp_path_factory.mktemp("right") / "package")


def sentence(right: OnnxPackage, wrong: OnnxPackage) -> str | None:
    """Compare a package with the function bodies of another, which has the same names."""
    sides = Sides(right, body_source(wrong), body_source(right))
    inputs = right.vectors[0].inputs
    return first_difference(sides, inputs, inputs)


def more(value: str) -> Fault:
    """A value is a tenth larger."""

    def plant(site: Site) -> None:
        old, new = site.under(value)
        factor = site.constant("tenth", 1.1, np.float32)
        site.insert(helper.make_node("Mul", [old, factor], [new]))

    return plant


def other_choice(site: Site) -> None:
    """The router chooses one head more."""
    (router,) = [node for node in site.graph.node if node.name == site.router.node]
    (top_k,) = [one for one in router.attribute if one.name == "top_k"]
    top_k.i += 1


def rolled_for_attention(site: Site) -> None:
    old, new = site.under(site.gates)
    site.insert(site.moved(old, np.roll(np.arange(site.heads), 1).tolist(), new))


PLACES = [
    (more("routed_0"), "the logits that the router of layer 'blocks.0.attn' reads"),
    (other_choice, "the router of layer 'blocks.0.attn'"),
    (rolled_for_attention, "the router of layer 'blocks.0.attn'"),
    (more("v_0"), "the attention of layer 'blocks.0.attn'"),
    (
        more("made_0"),
        "the logits that the router of layer 'blocks.1.attn' reads, behind layer 'blocks.0.attn'",
    ),
    (more("v_1"), "the attention of layer 'blocks.1.attn'"),
]


@sampled(3)
@pytest.mark.parametrize(("fault", "place"), PLACES, ids=range(len(PLACES)))
def test_place_of_a_fault_is_named(right: OnnxPackage, tmp_path: Path, fault: Fault, place: str):
    layer = right.manifest.layers[0]
    wrong = planted(right, tmp_path / "package", in_layer(layer, fault))
    assert sentence(right, wrong) == (
        f"With the gates of the reference fed to every layer, it first differs in {place}."
    )


def test_nothing_is_said_of_what_is_equal(right: OnnxPackage):
    assert sentence(right, right) is None


def test_nothing_is_said_of_a_run_that_fails(right: OnnxPackage, tmp_path: Path):
    def break_it(graph: onnx.GraphProto) -> None:
        (node,) = [one for one in graph.node if "x_0" in one.output]
        node.input[0] = "valid"  # of another type

    wrong = planted(right, tmp_path / "package", break_it)
    assert sentence(right, wrong) is None
