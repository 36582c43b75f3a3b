"""Our own operators in a file that is read again compute what they mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from moh_deploy.frontend.fx.arrays import to_numpy, to_torch
from moh_deploy.frontend.load.onnx_file import load_onnx
from moh_deploy.ops.contract import find_mismatch
from tests.nightly import sampled
from tests.ops.case_models import case_model
from tests.ops.cases import OP_CASES

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
    model = case_model(case)
    model.graph.node[0].name = "attention"
    onnx.save(model, tmp_path / "model.onnx")
    loaded = load_onnx(tmp_path / "model.onnx")
    assert loaded.module is not None
    with torch.no_grad():
        output = loaded.module(*(to_torch(array) for array in inputs if array is not None))
    assert find_mismatch(case, [to_numpy(one) for one in output]) is None
