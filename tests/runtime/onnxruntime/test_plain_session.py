from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from moh_deploy.runtime.onnxruntime.session import crash_of_plain_session
from tests.nightly import nightly
from tests.runtime.onnxruntime.test_session import float16_that_is_transposed_before_a_product


@pytest.mark.parametrize("is_turned", [True, pytest.param(False, marks=nightly)])
def test_float16_that_ends_a_plain_session_is_said_with_the_way_around(
    tmp_path: Path, is_turned: bool
):
    model = float16_that_is_transposed_before_a_product(np.ones((4, 5), np.float32), (2, 3, 4))
    if not is_turned:
        model.graph.node[1].attribute[0].CopyFrom(onnx.helper.make_attribute("perm", [0, 1, 2]))
    onnx.save(model, tmp_path / "model.onnx")
    found = crash_of_plain_session(tmp_path / "model.onnx")
    assert (found is not None) is is_turned
    assert found is None or found.endswith(
        "on model.onnx: set optimization.disable_specified_optimizers of it to"
        " MatmulTransposeFusion, as moh-deploy does."
    )
