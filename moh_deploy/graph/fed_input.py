"""An input of a graph that stands in for an inner value."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper


def add_input(graph: onnx.GraphProto, name: str, dtype: np.dtype[Any], *, rank: int = 3) -> None:
    """Let a graph take a value of any sizes; of rank 3 unless said: [B, S, H]."""
    element = helper.np_dtype_to_tensor_dtype(dtype)
    graph.input.append(helper.make_tensor_value_info(name, element, [None] * rank))
