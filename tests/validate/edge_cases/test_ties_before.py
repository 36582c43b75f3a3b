"""Faults in the graph that show at ties alone are found, and the layer is named; `verify` on the
recorded inputs finds none of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import moh_deploy
from moh_deploy.errors import PackageError
from moh_deploy.package import LayerInfo, OnnxPackage
from moh_deploy.validate.edge_cases.case_result import MODEL, CaseResult
from moh_deploy.validate.edge_cases.source import Sides, body_source
from moh_deploy.validate.edge_cases.ties_before import run_ties_before
from tests.edge_case_package import write_edge_package
from tests.nightly import nightly, one_in, sampled
from tests.validate.edge_cases.exported_packages import exported
from tests.validate.edge_cases.planted_faults import (
    ALWAYS,
    BEFORE,
    BEHIND,
    RIGHT,
    Fault,
    higher_index_by_epsilon,
    in_layer,
    other_router_at_ties,
    planted,
)

EXPORTED = ("windows", "select_fixed_and_chosen", "llama_prefill")
"""Gates are rearranged for attention; heads are weighed behind the router; norms of queries route
two layers."""


@pytest.fixture(scope="module")
def package_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OnnxPackage]:
    made: dict[str, OnnxPackage] = {}

    def make(name: str) -> OnnxPackage:
        if name not in made:
            output = tmp_path_factory.mktemp(name) / "package"
            made[name] = (
                write_edge_package(output) if name == "handmade" else exported(name, output)
            )
        return made[name]

    return make


def results(package: OnnxPackage) -> list[CaseResult]:
    bodies = body_source(package)
    return list(run_ties_before(Sides(package, bodies, bodies)))


def failed(package: OnnxPackage) -> dict[str, str]:
    return {one.place: one.detail for one in results(package) if one.status == "failed"}


def last_layer(package: OnnxPackage) -> LayerInfo:
    return package.manifest.layers[-1]


PACKAGES = pytest.mark.parametrize(
    "name", ["handmade", *(pytest.param(name, marks=nightly) for name in EXPORTED)]
)


def test_second_router_of_a_layer_is_refused_before_anything_runs(
    package_of: Callable[[str], OnnxPackage], tmp_path: Path
):
    right = package_of("handmade")
    with pytest.raises(PackageError, match=r"model\.onnx has 'node planted'"):
        planted(right, tmp_path / "package", in_layer(last_layer(right), other_router_at_ties))


@sampled(8)
@PACKAGES
@pytest.mark.parametrize("fault", [*BEFORE, *BEHIND], ids=lambda one: one.__name__)
def test_fault_at_ties_is_found_that_recorded_inputs_do_not_show(
    package_of: Callable[[str], OnnxPackage], tmp_path: Path, name: str, fault: Fault
):
    right = package_of(name)
    layer = last_layer(right)
    wrong = planted(right, tmp_path / "package", in_layer(layer, fault))
    # An epsilon moves the scores that were recorded by more than rounding does.
    if fault is not higher_index_by_epsilon:
        assert moh_deploy.verify(wrong.root, kernels="off").equal
    found = failed(wrong)
    assert found.keys() == {layer.path}, found
    assert f"layer '{layer.path}' in case 'ties before the router'" in found[layer.path]


@PACKAGES
@pytest.mark.parametrize("fault", ALWAYS, ids=lambda one: one.__name__)
def test_attention_that_reads_other_gates_than_the_router_makes_is_found(
    package_of: Callable[[str], OnnxPackage], tmp_path: Path, name: str, fault: Fault
):
    right = package_of(name)
    layer = last_layer(right)
    wrong = planted(right, tmp_path / "package", in_layer(layer, fault))
    (sentence,) = failed(wrong).values()
    assert sentence.startswith(f"what MoHAttention reads as gates of layer '{layer.path}' in case")


@sampled(3)
@PACKAGES
@pytest.mark.parametrize("twin", [None, *RIGHT], ids=lambda one: getattr(one, "__name__", "as is"))
def test_what_is_right_passes(
    package_of: Callable[[str], OnnxPackage], tmp_path: Path, name: str, twin: Fault | None
):
    package = package_of(name)
    if twin is not None:
        package = planted(package, tmp_path / "package", in_layer(last_layer(package), twin))
    places = [layer.path for layer in package.manifest.layers]
    found = [(one.place, one.status) for one in results(package)]
    assert found == [(place, "passed") for place in (*places, MODEL)]


@nightly
@pytest.mark.parametrize("fault", one_in(3, BEHIND), ids=lambda one: one.__name__)
def test_first_of_two_layers_is_named_alone(
    package_of: Callable[[str], OnnxPackage], tmp_path: Path, fault: Fault
):
    right = package_of("llama_prefill")
    first, second = right.manifest.layers
    wrong = planted(right, tmp_path / "wrong", in_layer(first, fault))
    by_place = {one.place: one for one in results(wrong)}
    assert by_place[first.path].status == "failed"
    assert by_place[second.path].status == "passed"
    assert by_place[MODEL].detail == (
        f"layer '{first.path}' is wrong, and every output stands behind it."
    )


@nightly
def test_sentence_says_what_breaks_ties(package_of: Callable[[str], OnnxPackage], tmp_path: Path):
    right = package_of("windows")
    layer = last_layer(right)
    epsilon, turned, _, rolled = (BEFORE[0], BEFORE[2], None, BEHIND[0])
    expected = {
        epsilon: "equal numbers reach its router up to 2.98e-06 apart: too little for a bias",
        turned: "what its router reads jumps at ties: at ",
        rolled: "of what the router makes, behind Gather 'planted_other', Where 'router',",
    }
    for fault, words in expected.items():
        wrong = planted(right, tmp_path / fault.__name__, in_layer(layer, fault))
        assert words in failed(wrong)[layer.path]
