"""A package that is wrong at one size is found by what it makes at others; one whose samples or
tokens see each other is not accused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import moh_deploy
from moh_deploy.package import OnnxPackage
from moh_deploy.runtime.base import Variant
from moh_deploy.validate.edge_cases.input_run import InputJudge
from moh_deploy.validate.edge_cases.other_sizes import SAMPLES, TOKENS, run_samples, run_tokens
from moh_deploy.validate.edge_cases.source import CaseResult, Sides, Source, body_source
from tests.edge_case_package import write_edge_package
from tests.nightly import nightly, sampled
from tests.validate.edge_cases.exported_packages import exported
from tests.validate.edge_cases.planted_faults import AT_SIZE, SizeFault, at_size, planted


def results(package: OnnxPackage) -> list[CaseResult]:
    subject = Source(package, Variant(kernels="off"))
    judge = InputJudge.of(Sides(package, subject, body_source(package)))
    return [run_samples(judge), *run_tokens(judge)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    """Two layers that see all tokens."""
    return write_edge_package(tmp_path_factory.mktemp("pair") / "package")


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return exported("sdpa_causal", tmp_path_factory.mktemp("causal") / "package")


@sampled(6)
@pytest.mark.parametrize("fault", AT_SIZE, ids=lambda item: item.__name__)
@pytest.mark.parametrize("number", [0, 1])
def test_fault_at_one_batch_size_is_found(
    pair: OnnxPackage, tmp_path: Path, fault: SizeFault, number: int
):
    layer = pair.manifest.layers[number]
    wrong = planted(pair, tmp_path / "package", at_size(layer, fault, 0, 5))
    assert moh_deploy.verify(wrong.root, kernels="off").equal
    samples, tokens = results(wrong)
    assert (samples.status, tokens.status) == ("failed", "not applicable")
    assert samples.detail.startswith(
        "case 'samples by themselves': batch of 1, 3, 4, 6, 7, 8, 9, 16 agree, batch of 5 do not:"
    )
    assert f"'{layer.path}'" in samples.detail


@sampled(3)
@pytest.mark.parametrize("fault", AT_SIZE, ids=lambda item: item.__name__)
def test_fault_at_one_length_of_a_causal_model_is_found(
    causal: OnnxPackage, tmp_path: Path, fault: SizeFault
):
    layer = causal.manifest.layers[0]
    wrong = planted(causal, tmp_path / "package", at_size(layer, fault, 1, 6))
    samples, tokens = results(wrong)
    assert (samples.status, tokens.status) == ("passed", "failed")
    assert "seq of 1, 2, 3, 4, 5, 7, 8, 9, 10, 11 agree, seq of 6 do not" in tokens.detail


def test_what_is_right_passes_as_far_as_it_can_be_asked(pair: OnnxPackage, causal: OnnxPackage):
    assert [(result.case, result.status) for result in results(causal)] == [
        (SAMPLES, "passed"),
        (f"{TOKENS}: seq", "passed"),
    ]
    samples, tokens = results(pair)
    assert (samples.status, tokens.status) == ("passed", "not applicable")
    assert tokens.detail == "the model is not causal along 'seq': later tokens change earlier ones."


@nightly
def test_model_whose_samples_see_each_other_is_not_accused(pair: OnnxPackage, tmp_path: Path):
    """It takes the mean over the batch off what it returns, as it was recorded."""

    def mean_over_samples(graph: onnx.GraphProto) -> None:
        last = next(node for node in graph.node if "y" in node.output)
        last.output[0] = "whole"
        graph.initializer.append(numpy_helper.from_array(np.asarray([0]), "batch_axis"))
        graph.node.extend(
            [
                helper.make_node("ReduceMean", ["whole", "batch_axis"], ["mean"], keepdims=1),
                helper.make_node("Sub", ["whole", "mean"], ["y"]),
            ]
        )

    changed = planted(pair, tmp_path / "package", mean_over_samples)
    (recorded,) = changed.vectors
    y = recorded.outputs["y"]
    recorded.outputs["y"] = y - y.mean(axis=0, keepdims=True)
    samples = results(changed)[0]
    assert samples.status == "not applicable"
    assert samples.detail.startswith("samples of one run are not independent: output 'y'")
