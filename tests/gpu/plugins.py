"""The plugin for TensorRT on the device, driven by tests/cuda/trt/harness.cc as TensorRT would.

TensorRT itself is not needed. The library and the harness are built where its headers are:

    make plugin && python -m tests.gpu.prepare --plugin moh_deploy/native/libmoh_plugin.so
"""

from pathlib import Path

import torch

from tests.cuda.trt.host_plugin import BUILD, RUNTIME, Harness, Plugin, Tensor
from tests.gpu.build import BUILDS
from tests.gpu.correctness import DeviceTensor
from tests.gpu.kernels import Bench
from tests.gpu.steps import Facts, Missing, Wrong
from tests.gpu.stored_cases import StoredCase

PLUGIN, HARNESS = BUILDS / "libmoh_plugin.so", BUILDS / "libmoh_harness.so"


def plugin(bench: Bench, index: int, plugin: str, harness: str) -> Facts:
    """Build, serialize and run a stored case through the plugin, in each of its tactics.

    Raises:
        Missing: The library or the harness was not brought along.
        Wrong: The plugin refuses the case, or a tactic computes something else.
    """
    if not (plugin and harness):
        raise Missing(
            f"{PLUGIN.name} and {HARNESS.name} were not brought along:"
            " `python -m tests.gpu.prepare --plugin FILE` puts them where they are looked for."
        )
    driver = Harness(Path(harness), Path(plugin))
    case = bench.cases.case(index)
    run = _PluginRun(bench, case)
    built = driver.create(case.op, run.fields, phase=BUILD)
    if built is None or not run.is_supported(built):
        raise Wrong(f"the plugin refuses this case: {driver.log().strip()}")
    problems = []
    for tactic in built.tactics() or [0]:
        kept = driver.create(case.op, built.serialize(), phase=RUNTIME)
        if not built.configure(run.tensors) or kept is None or not kept.set_tactic(tactic):
            raise RuntimeError(driver.log())
        problem = run.find_problem(kept)
        problems += [f"tactic {tactic}: {problem}"] if problem else []
    if problems:
        raise Wrong("; ".join(problems), {"log": driver.log()})
    return {}


class _PluginRun:
    """A stored case as the node of a lowered model: inputs without gaps, and their fields."""

    def __init__(self, bench: Bench, case: StoredCase) -> None:
        self._bench, self._case = bench, case
        kind = bench.device.kind
        self._inputs = [DeviceTensor.of(t, kind) for t in case.tensors if t is not None]
        present = sum(1 << i for i, tensor in enumerate(case.tensors) if tensor is not None)
        self.fields = {**case.attributes, "present_inputs": present}
        output = Tensor(case.dtype, case.reference.shape)
        self.tensors = [*(Tensor(tensor.dtype, tensor.shape) for tensor in self._inputs), output]

    def is_supported(self, built: Plugin) -> bool:
        return all(built.supports(position, self.tensors) for position in range(len(self.tensors)))

    def find_problem(self, kept: Plugin) -> str | None:
        device, dtype = self._bench.device, getattr(torch, self._case.dtype)
        size = max(1, kept.workspace_bytes(self.tensors))
        workspace = torch.full((size,), 0xFF, dtype=torch.uint8, device=device.kind)
        output = torch.full(
            self._case.reference.shape, float("nan"), dtype=dtype, device=device.kind
        )
        if not kept.on_shape_change(self.tensors):
            return "onShapeChange refuses the shapes it was built for"
        addresses = [tensor.address for tensor in self._inputs]
        where = (output.data_ptr() or None, workspace.data_ptr())
        if not kept.enqueue_at(self.tensors, addresses, *where):
            return "enqueue fails"
        device.synchronize()
        return self._case.find_mismatch(output)
