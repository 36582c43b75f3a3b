from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.package import DimSum, OnnxPackage
from moh_deploy.validate.edge_cases.source import InputState, input_states
from tests.edge_case_package import write_edge_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> OnnxPackage:
    return write_edge_package(tmp_path_factory.mktemp("states") / "package")


def states(
    package: OnnxPackage, longest: Mapping[str, int] | None = None, mask: str | None = None
) -> dict[str, InputState]:
    return {state.case: state for state in input_states(package, longest or {}, mask)}


def limited(package: OnnxPackage, **ranges: tuple[int, int | None]) -> OnnxPackage:
    return replace(package, manifest=replace(package.manifest, dim_ranges=ranges))


def test_each_dimension_has_its_states(package: OnnxPackage):
    found = states(package, {"batch": 3, "seq": 9})
    assert list(found) == [
        "zero: batch=0",
        "one: batch=1",
        "longest: batch=3",
        "zero: seq=0",
        "one: seq=1",
        "longest: seq=9",
        "one: batch=1, seq=1",
        "padding only",
    ]
    shapes = {case: item.inputs["x"].shape[:2] for case, item in found.items() if item.inputs}
    assert shapes["zero: seq=0"] == (2, 0)
    assert shapes["longest: seq=9"] == (2, 9)
    assert shapes["one: batch=1, seq=1"] == (1, 1)


def test_longest_is_what_the_trace_is_good_for(package: OnnxPackage):
    found = states(limited(package, seq=(1, 12), batch=(1, 4)))
    assert found["longest: seq=12"].remark == "the most that the trace is good for"
    assert found["zero: seq=0"].inputs is None
    assert not found["zero: seq=0"].exists
    assert found["zero: seq=0"].reason == "dimension 'seq' is 0; the model was traced for 1 to 12."


def test_longest_is_what_the_trace_is_good_for_beside_the_others(package: OnnxPackage):
    manifest = replace(package.manifest, dim_sums=(DimSum(("batch", "seq"), 12),))
    batch = package.manifest.dims["batch"]
    assert f"longest: seq={12 - batch}" in states(replace(package, manifest=manifest))


def test_longest_is_what_fits_where_there_is_no_limit(package: OnnxPackage):
    (case,) = [
        state for state in states(package).values() if state.case.startswith("longest: seq=")
    ]
    size = case.inputs["x"].shape[1]
    scores = 4 * 2 * 6 * size * size  # bytes, of one layer
    assert 2**24 < 4 * scores <= 2**28
    assert "surely fit into" in case.remark
    assert "there is no limit to it, --longest seq=N runs another" in case.remark


def test_size_that_was_asked_for_beyond_the_limit_is_not_applicable(package: OnnxPackage):
    found = states(limited(package, seq=(1, 12)), {"seq": 13, "batch": 3})
    assert "traced for 1 to 12" in found["longest: seq=13"].reason


def test_model_of_fixed_sizes_has_no_states(package: OnnxPackage):
    fixed = replace(package, manifest=replace(package.manifest, dims={}))
    found = states(fixed)
    assert [item.reason for item in found.values()][:3] == [
        "every size of the inputs is fixed."
    ] * 3


def test_padding_only_closes_the_mask_and_no_other_state_does(package: OnnxPackage):
    found = states(package, {"batch": 3, "seq": 9}, "valid")
    padding = found["padding only: valid all 0"]
    assert not padding.inputs["valid"].any()
    np.testing.assert_array_equal(padding.inputs["x"], package.vectors[0].inputs["x"])
    others = [
        item.inputs["valid"] for item in found.values() if item.inputs and item is not padding
    ]
    assert all(other.all() for other in others)
