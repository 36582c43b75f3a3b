"""Contract cases as a plugin gets them."""

from functools import cached_property

import numpy as np

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case, numpy_dtype
from tests.cuda.trt.host_plugin import FieldData, Plugin, Tensor


class CaseRun:
    """A contract case as the node of a lowered model: inputs without gaps, and their fields."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.given = [(i, a) for i, a in enumerate(case.inputs()) if a is not None]
        self.inputs = [array for _, array in self.given]

    @cached_property
    def fields(self) -> dict[str, FieldData]:
        present = sum(1 << i for i, _ in self.given)
        return {**self.case.attributes, "present_inputs": present}

    @cached_property
    def tensors(self) -> list[Tensor]:
        (output,) = OPS[self.case.op].shape_rule(self.case.input_types(), self.case.attributes)
        inputs = [Tensor(array.dtype.name, array.shape) for array in self.inputs]
        return [*inputs, Tensor(output.dtype, output.shape)]

    def run(self, plugin: Plugin) -> np.ndarray:
        """Run all that an engine does with a plugin, and return its output."""
        assert plugin.configure(self.tensors)
        workspace = np.full(plugin.workspace_bytes(self.tensors) + 256, 0xFF, np.uint8)
        workspace = workspace[-workspace.ctypes.data % 256 :]
        output = np.full(self.tensors[-1].opt, np.nan, numpy_dtype(self.case.dtype))
        assert plugin.on_shape_change(self.tensors)
        assert plugin.enqueue(self.inputs, output, workspace)
        return output
