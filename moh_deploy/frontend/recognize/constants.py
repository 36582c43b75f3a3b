"""Values that are known before the model runs."""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Node


class Constants:
    """Looks up the value of a parameter, buffer or constant tensor of a program."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self._names: dict[str, str] = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self._values = {**program.state_dict, **program.constants}

    def __call__(self, node: Node) -> torch.Tensor | None:
        found = self._values.get(self._names.get(node.name, ""))
        return found if isinstance(found, torch.Tensor) else None
