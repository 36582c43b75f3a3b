"""Our own operators in a file that is read again compute what they mean."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from moh_deploy.frontend.fx.arrays import to_numpy, to_torch
from moh_deploy.frontend.load.checkpoint_file import load_onnx
from moh_deploy.ops.cases import Case, find_mismatch
from tests.nightly import sampled
from tests.ops.case_models import case_model
from tests.ops.cases import OP_CASES, named_case

FILLED = [
    case
    for case in OP_CASES["MoHAttention"]
    if case.name.startswith("filled") and case.dtype == "float32" and "nan" not in case.name
]


@sampled(4)
@pytest.mark.parametrize("case", FILLED, ids=lambda case: case.name)
def test_a_cache_with_room_is_read_as_a_mask(case, tmp_path: Path):
    """Which needs numbers where nothing is filled, and gates that are."""
    inputs = tuple(
        None if array is None else np.nan_to_num(array, neginf=-np.inf) for array in case.inputs()
    )
    case = replace(case, build=lambda rng: inputs)
    assert find_mismatch(case, read_again(case, tmp_path / "model.onnx")) is None


@pytest.mark.parametrize("name", ["no_shared_staged", "two_stage"])
def test_stages_of_a_router_weigh_the_heads_that_they_are_of(name: str, tmp_path: Path):
    case = named_case("MoHRouter", name, "float32")
    assert find_mismatch(case, read_again(case, tmp_path / "model.onnx")) is None


def read_again(case: Case, path: Path) -> list[np.ndarray]:
    """Return what a case's node gives as a module."""
    model = case_model(case)
    model.graph.node[0].name = "node"
    onnx.save(model, path)
    loaded = load_onnx(path)
    with torch.no_grad():
        output = loaded.module(*(to_torch(item) for item in case.inputs() if item is not None))
    return [to_numpy(item) for item in output]
