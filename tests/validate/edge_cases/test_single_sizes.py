"""A model that asks for one size, and computes something else there, is found without a reference
at that size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from moh_deploy.package import OnnxPackage
from moh_deploy.validate.edge_cases.source import CaseResult, Sides, body_source
from moh_deploy.validate.edge_cases.suite import run_single_sizes
from tests.edge_case_package import write_edge_package
from tests.nightly import sampled
from tests.validate.edge_cases.planted_faults import AT_SIZE, SizeFault, at_size, planted


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    """Two layers that see all tokens."""
    return write_edge_package(tmp_path_factory.mktemp("right") / "package")


def results(package: OnnxPackage) -> list[CaseResult]:
    bodies = body_source(package)
    return list(run_single_sizes(Sides(package, bodies, bodies)))


@sampled(3)
@pytest.mark.parametrize("fault", AT_SIZE, ids=lambda one: one.__name__)
def test_fault_at_one_length_is_found_though_tokens_see_each_other(
    right: OnnxPackage, tmp_path: Path, fault: SizeFault
):
    layer = right.manifest.layers[0]
    wrong = planted(right, tmp_path / "package", at_size(layer, fault, 1, 6))
    (found,) = results(wrong)
    assert (found.case, found.status) == ("one size apart: seq=6", "failed")
    assert found.detail.startswith(
        "case 'one size apart: seq=6': Equal 'planted_size' lets the model compute something else"
        " there: output 'y' differs by"
    )
    assert f"layer '{layer.path}'" in found.detail


def test_question_on_which_nothing_depends_is_right(right: OnnxPackage, tmp_path: Path):
    def idle(graph: onnx.GraphProto) -> None:
        (last,) = [node for node in graph.node if "y" in node.output]
        last.output[0] = "whole"
        numbers = {"wanted": np.asarray(6), "second": np.asarray(1)}
        graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in numbers.items())
        graph.node.extend(
            [
                helper.make_node("Shape", ["x"], ["sizes"]),
                helper.make_node("Gather", ["sizes", "second"], ["seq_len"], axis=0),
                helper.make_node("Equal", ["seq_len", "wanted"], ["is_six"]),
                helper.make_node("Where", ["is_six", "whole", "whole"], ["y"]),
            ]
        )

    (found,) = results(planted(right, tmp_path / "package", idle))
    assert (found.case, found.status) == ("one size apart: seq=6", "passed")


def test_model_that_asks_nothing_has_no_such_case(right: OnnxPackage):
    assert results(right) == []
