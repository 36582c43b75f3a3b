"""A variant of a model in which the gates of its layers are inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from moh_deploy.package.switches import all_nodes


def computed_gates(gates: str) -> str:
    """Return the name of what a router computes where other gates are fed to the model."""
    return f"{gates}.computed"


def unread_values(graph: onnx.GraphProto, names: Iterable[str]) -> list[str]:
    """Return those of the values that no node reads: to feed others would change nothing."""
    read = {name for node in all_nodes(graph) for name in node.input}
    return [name for name in names if name not in read]


def force_gates(graph: onnx.GraphProto, gates: Mapping[str, np.dtype[Any]]) -> None:
    """Make inputs of the gates, so that every reader of them takes what is fed.

    Args:
        graph: Changed in place. What its routers compute is called `computed_gates(name)`.
        gates: Name of the gates [B, S, H] of each layer to their dtype.
    """
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name in gates:
                node.output[index] = computed_gates(name)
    for name, dtype in gates.items():
        element = helper.np_dtype_to_tensor_dtype(dtype)
        graph.input.append(helper.make_tensor_value_info(name, element, [None, None, None]))
