"""Planted bugs are caught by the case that is meant for them; what is right passes all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from moh_deploy.errors import PackageError
from moh_deploy.package import MODEL_NAME, CorpusSample, MinedToken, OnnxPackage, PackageWriter
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import Kernels
from moh_deploy.system.progress import SilentProgress
from moh_deploy.validate.edge_cases.routing_judge import nan_output_problem
from moh_deploy.validate.edge_cases.routing_run import run_routing_states
from moh_deploy.validate.edge_cases.source import (
    MODEL,
    CaseResult,
    Sides,
    Source,
    body_source,
    input_states,
)
from moh_deploy.validate.edge_cases.suite import Suite, run_kept, run_single_sizes
from tests.edge_case_package import Plant, write_edge_package
from tests.kernel_library import needs_library
from tests.nightly import nightly, sampled
from tests.two_layers import write_two_layers
from tests.validate.edge_cases import planted_bugs
from tests.validate.edge_cases.planted_faults import (
    AT_SIZE,
    Site,
    SizeFault,
    at_size,
    in_layer,
    planted,
)


def run(judged: OnnxPackage, reference: OnnxPackage, kernels: Kernels = "off") -> list[CaseResult]:
    """Compare what one package runs with the function bodies of another."""
    subject = Source(judged, Variant(kernels=kernels))
    sides = Sides(reference, subject, body_source(reference), valid_tokens="valid")
    states = tuple(input_states(reference, {"batch": 3, "seq": 9}, "valid"))
    return Suite(sides, states).run(SilentProgress())


def failed(results: Sequence[CaseResult]) -> dict[str, str]:
    """Return cases that failed to the first sentence on each."""
    found = [result for result in results if result.status == "failed"]
    return {item.case: item.detail for item in reversed(found)}


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_edge_package(tmp_path_factory.mktemp("right") / "package")


def plant(tmp_path: Path, bug: Plant) -> OnnxPackage:
    return write_edge_package(tmp_path / "package", bug)


@sampled(2)
@pytest.mark.parametrize("kernels", ["off", pytest.param("require", marks=needs_library)])
def test_what_is_right_passes_everything(right: OnnxPackage, kernels: Kernels):
    results = run(right, right, kernels)
    assert failed(results) == {}
    others = {result.case for result in results if result.status != "passed"}
    not_asked = {"regression corpus", "tokens without later ones: seq"}  # it sees all tokens
    assert others <= {"zero: batch=0", "zero: seq=0", *not_asked}
    assert len(results) == 5 * 3 + 2 + 8 + 2 + 1


@nightly
@needs_library
def test_kernels_take_no_tokens_where_function_bodies_refuse_them(right: OnnxPackage):
    results = {item.case: item for item in run(right, right, "require")}
    assert results["zero: seq=0"].status == "passed"
    assert "every output is empty, of the shape in the manifest" in results["zero: seq=0"].detail


@nightly
def test_refusal_of_no_tokens_is_no_pass(right: OnnxPackage):
    results = {item.case: item for item in run(right, right)}
    refused = results["zero: seq=0"]
    assert refused.status == "not applicable"
    assert "input 'x' is float32[2, 0, 24], with size 0 on axis 1 ('seq')" in refused.detail


IN_ROUTERS = [
    (planted_bugs.tie_toward_the_higher_index, {"ties", "flat", "saturated"}),
    (planted_bugs.nan_as_the_smallest, {"NaN"}),
    (planted_bugs.softmax_without_the_maximum, {"all negative", "saturated"}),
]


_AMONG_ZEROS = ("saturated", planted_bugs.tie_toward_the_higher_index)


@sampled(3)
@pytest.mark.parametrize(("bug", "cases"), IN_ROUTERS)
def test_bug_in_routers_is_caught_though_both_sides_have_it(
    tmp_path: Path, bug: Plant, cases: set[str]
):
    """The float64 reference has it not."""
    package = plant(tmp_path, bug)
    found = failed(run(package, package))
    assert found.keys() == cases
    for case, sentence in found.items():
        # Gates that are 0 do not show which of them were chosen: the second layer's are 1.
        layer = "blocks.1.attn" if (case, bug) == _AMONG_ZEROS else "blocks.0.attn"
        assert sentence.startswith(f"gates of layer '{layer}' in case '{case}'")


IN_ATTENTION = [
    (
        planted_bugs.division_by_the_keys_that_are_seen,
        {"padding only: valid all 0"},
        "it first differs in the attention of layer 'blocks.0.attn'",
    ),
    (
        planted_bugs.head_with_every_token_is_skipped,
        {"same heads"},
        "attention of layer 'blocks.0.attn' in case 'same heads' differs",
    ),
    (
        planted_bugs.nan_gates_are_closed,
        {"NaN"},
        "attention of layer 'blocks.0.attn' in case 'NaN' gives numbers to tokens",
    ),
]


@sampled(3)
@pytest.mark.parametrize(("bug", "cases", "sentence"), IN_ATTENTION)
def test_bug_in_attention_is_caught(
    tmp_path: Path, right: OnnxPackage, bug: Plant, cases: set[str], sentence: str
):
    found = failed(run(plant(tmp_path, bug), right))
    assert found.keys() == cases
    assert [sentence in item for item in found.values()] == [True], found


FINITE_CASES = {"ties", "flat", "all negative", "saturated", "same heads"}


@nightly
def test_outputs_of_nothing_but_nan_are_no_pass_though_both_sides_have_them(tmp_path: Path):
    package = plant(tmp_path, planted_bugs.weights_of_nan("o_weight_1"))
    results = run(package, package)
    found = failed(results)
    assert found.keys() == FINITE_CASES
    assert found["flat"] == (
        "output 'y' in case 'flat' is NaN at [0, 0, 0]: inputs and logits are finite, and the"
        " function bodies give NaN, too (216 of 240 elements)."
    )
    kinds = {
        result.kind for result in results if result.status == "passed" and result.place == MODEL
    }
    assert kinds == set()


def test_attention_of_nothing_but_nan_is_no_pass_though_both_sides_have_it(tmp_path: Path):
    package = plant(tmp_path, planted_bugs.weights_of_nan("o_weight_0"))
    results = run(package, package)
    found = {
        (result.case, result.place): result.detail
        for result in results
        if result.status == "failed"
    }
    layer = {case for case, place in found if place == "blocks.1.attn"}
    assert layer == {*FINITE_CASES, "NaN"}
    assert found["NaN", "blocks.1.attn"].startswith(
        "attention of layer 'blocks.1.attn' in case 'NaN' is NaN wherever it is not 0: inputs and"
        " logits are finite"
    )
    assert ("flat", "blocks.0.attn") not in found


@pytest.mark.parametrize("whole", [False, True])
def test_nan_that_was_recorded_is_right_unless_there_is_nothing_else(
    right: OnnxPackage, whole: bool
):
    (recorded,) = right.vectors
    made = recorded.outputs["y"].copy()
    made[0, 1] = np.nan
    if whole:
        made[:] = np.nan
    known = replace(recorded, outputs={"y": made})

    def every(_: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.ones(shape, bool)

    assert (nan_output_problem("flat", {"y": made}, known, every) is None) is not whole
    assert nan_output_problem("flat", {"y": made}, recorded, every) is not None
    assert nan_output_problem("flat", recorded.outputs, recorded, every) is None
    # Of padding nobody says that it may not be NaN.
    others = np.ones(made.shape, bool)
    others[0, 1] = False
    if not whole:
        assert nan_output_problem("flat", {"y": made}, recorded, lambda *_: others) is None


def garbage_at_padding(model: onnx.ModelProto) -> None:
    """The output of padded tokens is NaN."""
    last = model.graph.node[-1]
    last.output[0] = "right_y"
    nan = onnx.numpy_helper.from_array(np.asarray(np.nan, np.float32), "nan")
    model.graph.initializer.extend(
        [nan, onnx.numpy_helper.from_array(np.asarray([2]), "last_axis_of_y")]
    )
    for op, read, made in (
        ("Unsqueeze", ["valid", "last_axis_of_y"], "valid_tokens_of_y"),
        ("Where", ["valid_tokens_of_y", "right_y", "nan"], "y"),
    ):
        model.graph.node.append(onnx.helper.make_node(op, read, [made]))


@nightly
def test_padding_is_not_compared_in_any_case(right: OnnxPackage, tmp_path: Path):
    wrong = plant(tmp_path, garbage_at_padding)
    assert failed(run(wrong, right)).keys() == {"padding only: valid all 0"}  # it has no others
    subject = Source(wrong, Variant(kernels="off"))
    sides = Sides(right, subject, body_source(right))
    results = run_routing_states(sides, SilentProgress())
    assert {result.place for result in results if result.status == "failed"} == {MODEL}


@pytest.mark.parametrize(
    ("shape", "left_out"), [((2, 5, 24), 24), ((2, 6, 5, 4), 24), ((2, 4, 24), 0), ((10, 24), 0)]
)
def test_attention_counts_without_padding_where_it_has_the_tokens_of_the_mask(
    right: OnnxPackage, shape: tuple[int, ...], left_out: int
):
    sides = Sides(right, body_source(right), body_source(right), valid_tokens="valid")
    router = sides.routed[0].router
    assert (~sides.counted_attention(router, shape)).sum() == left_out
    assert sides.counted_attention(replace(router, in_order=False), shape).all()


def test_padding_of_the_corpus_is_not_compared(right: OnnxPackage):
    (recorded,) = right.vectors
    made = recorded.outputs["y"].copy()
    made[recorded.inputs["valid"] == 0] += 1
    token = MinedToken(0, (0, 0), 0.0)
    kept = CorpusSample(replace(recorded, outputs={"y": made}), (token,))
    package = replace(right, corpus=(kept,))
    sides = Sides(package, Source(right, Variant(kernels="off")), body_source(right))
    for mask, status in (("valid", "passed"), (None, "failed")):
        assert run_kept(replace(sides, valid_tokens=mask)).status == status


@nightly
def test_layer_without_router_node_is_not_applicable(tmp_path: Path):
    package = write_two_layers(tmp_path / "package")
    sides = Sides(package, body_source(package), body_source(package))
    results = Suite(sides, ()).run(SilentProgress())
    routing = [result for result in results if result.place == "blocks.0.attn"]
    assert {item.status for item in routing} == {"not applicable"}
    assert {item.detail for item in routing} == {
        "the router is of plain operators (custom), so there is no place to put logits."
    }
    assert {result.status for result in results if result.place == "blocks.1.attn"} == {"passed"}


@nightly
def test_router_that_was_replaced_and_is_not_there_is_refused_before_anything_runs(
    right: OnnxPackage, tmp_path: Path
):
    model = onnx.load(right.model_path)
    (router,) = [node for node in model.graph.node if node.name == "router_1"]
    router.op_type, router.domain, router.name = "Sigmoid", "", "sigmoid"
    del router.attribute[:]
    with PackageWriter(tmp_path / "package") as writer:
        onnx.save(model, writer.path(MODEL_NAME))
        with pytest.raises(PackageError, match=r"'layers\[1\]\.router_replaced'"):
            writer.finish(right.manifest, right.vectors, right.corpus)


@nightly
def test_router_behind_an_operator_is_no_router_of_plain_operators(
    right: OnnxPackage, tmp_path: Path
):
    def choice_of_two(site: Site) -> None:
        old, new = site.under(site.gates)
        never = site.constant("never", False, np.bool_)
        site.insert(onnx.helper.make_node("Where", [never, old, old], [new]))

    package = planted(
        right, tmp_path / "package", in_layer(right.manifest.layers[0], choice_of_two)
    )
    results = [item for item in run(package, package) if item.kind == "routing"]
    assert {result.status for result in results} == {"passed"}


def single_sizes(package: OnnxPackage) -> list[CaseResult]:
    bodies = body_source(package)
    return list(run_single_sizes(Sides(package, bodies, bodies)))


@sampled(3)
@pytest.mark.parametrize("fault", AT_SIZE, ids=lambda item: item.__name__)
def test_fault_at_one_length_is_found_though_tokens_see_each_other(
    right: OnnxPackage, tmp_path: Path, fault: SizeFault
):
    layer = right.manifest.layers[0]
    wrong = planted(right, tmp_path / "package", at_size(layer, fault, 1, 6))
    (found,) = single_sizes(wrong)
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

    (found,) = single_sizes(planted(right, tmp_path / "package", idle))
    assert (found.case, found.status) == ("one size apart: seq=6", "passed")


def test_model_that_asks_nothing_has_no_such_case(right: OnnxPackage):
    assert single_sizes(right) == []
