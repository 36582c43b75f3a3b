"""Runs stored contract cases on the device in every tactic: outputs poisoned, guards around."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from tests.cuda import abi
from tests.cuda.arguments import aggregated_attention_args, attention_args, router_args
from tests.gpu.attention import KernelCall, Tensors, reference, with_gates
from tests.gpu.kernels import Bench, Refused
from tests.gpu.race import Expected
from tests.gpu.steps import Facts, Json, Wrong
from tests.gpu.stored_cases import StoredCase, StoredTensor
from tests.gpu.workloads import AttentionShape

_GUARD_BYTES = 256
_GUARD, _UNWRITTEN = 0xA5, 0x5A

# Tactic and key splits of an attention; None: as the library chooses.
Plan = tuple[str, int] | None
PLANS: tuple[Plan, ...] = (
    None,
    *((tactic, splits) for tactic in abi.TACTICS for splits in (1, 3)),
)


def case(bench: Bench, index: int) -> Facts:
    """Run a stored case in every plan.

    Raises:
        Wrong: An output is wrong, or something beside it was written to.
    """
    stored = bench.cases.case(index)
    problems = find_problems(bench, stored)
    if problems:
        raise Wrong("; ".join(problems))
    return {}


def find_problems(bench: Bench, stored: StoredCase, *, bare: bool = False) -> list[str]:
    """Return a sentence for each plan in which a case is wrong.

    Args:
        bare: Memory is as the allocator gives it, without guards: for tools that watch it.
    """
    problems = []
    for plan in PLANS if stored.op == "MoHAttention" else (None,):
        try:
            problem = _Run(bench, stored, plan, bare=bare).find_problem()
        except Refused as refused:
            problem = str(refused)
        if problem is not None:
            problems.append(f"{problem} (plan: {plan or 'as chosen'})")
    return problems


class _Memory:
    """Bytes that nobody has written yet, between guards unless they are to be bare."""

    def __init__(self, size: int, device: str, *, bare: bool) -> None:
        self._guard = 0 if bare else _GUARD_BYTES
        self._all = torch.empty(max(1, size + 2 * self._guard), dtype=torch.uint8, device=device)
        self.bytes = self._all[self._guard : self._guard + size]
        self.address = self._all.data_ptr() + self._guard
        if not bare:
            self._all.fill_(_GUARD)
            self.bytes.fill_(_UNWRITTEN)

    def is_intact(self) -> bool:
        if self._guard == 0:
            return True
        ends = self._all[: self._guard], self._all[self._guard + self.bytes.numel() :]
        return all(bool((end == _GUARD).all()) for end in ends)


@dataclass(frozen=True)
class DeviceTensor:
    """A stored tensor on the device; without an address: it is absent."""

    address: int | None
    shape: tuple[int, ...]
    dtype: str
    data: torch.Tensor | None = None

    @classmethod
    def of(cls, stored: StoredTensor | None, device: str) -> DeviceTensor:
        if stored is None:
            return cls(None, (0,), "")
        # Copied, and not filled by a kernel of torch: initcheck looks at copies and at our kernels.
        # An empty tensor has an address, too.
        data = torch.from_numpy(np.resize(stored.data, max(1, stored.data.size))).to(device)
        return cls(data.data_ptr(), stored.shape, stored.dtype, data)


class _Run:
    def __init__(self, bench: Bench, stored: StoredCase, plan: Plan, *, bare: bool) -> None:
        self._bench, self._case, self._plan, self._bare = bench, stored, plan, bare
        self._inputs = [DeviceTensor.of(tensor, bench.device.kind) for tensor in stored.tensors]
        self._dtype = getattr(torch, stored.dtype)
        self._output = self._memory(stored.reference.size * self._dtype.itemsize)

    def find_problem(self) -> str | None:
        self._enqueue()
        self._bench.device.synchronize()
        if not self._output.is_intact():
            return "bytes beside the output were written to"
        return self._case.find_mismatch(self._output.bytes.view(self._dtype))

    def _enqueue(self) -> None:
        stored, inputs, output = self._case, self._inputs, self._output.address
        library, stream = self._bench.library, self._bench.device.stream()
        if stored.op == "MoHRouter":
            shape = next(tensor.shape for tensor in inputs if tensor.dtype)
            args = router_args(stored, inputs, output, shape[0] * shape[1])
            library.call("moh_cuda_router", ctypes.byref(args), None, stream)
        elif stored.op == "MoHAggregatedAttention":
            aggregated = aggregated_attention_args(stored, inputs, output)
            library.call("moh_cuda_aggregated_attention", ctypes.byref(aggregated), stream)
        else:
            self._attend(attention_args(stored, inputs, output), stream)

    def _attend(self, args: abi.AttentionArgs, stream: int | None) -> None:
        library, choice, size = self._bench.library, abi.AttentionChoice(), ctypes.c_size_t()
        described, device = ctypes.byref(args), library.device()
        library.call(
            "moh_cuda_attention_choose",
            described,
            ctypes.byref(device),
            abi.USUAL_OPEN_SHARE,
            ctypes.byref(choice),
        )
        if self._plan is not None:
            tactic, choice.key_splits = self._plan
            choice.tactic = abi.TACTICS[tactic]
        chosen = ctypes.byref(choice)
        library.call("moh_cuda_attention_workspace", described, chosen, ctypes.byref(size))
        workspace = self._memory(size.value)
        address = workspace.address if size.value else None
        library.call("moh_cuda_attention", described, chosen, address, size.value, stream)
        self._bench.device.synchronize()
        if not workspace.is_intact():
            raise Refused("bytes beside the workspace were written to")

    def _memory(self, size: int) -> _Memory:
        return _Memory(size, self._bench.device.kind, bare=self._bare)


# Attention on tensors larger than what 32 bits can index: the emulator alone has run it.


def far_apart(
    bench: Bench, shape: Mapping[str, Json], dtype: str, last_offset: int, tactic: str
) -> Facts:
    """Run an attention whose last token is `last_offset` elements behind the first one.

    Raises:
        Wrong: It computes something else than the same tensors close together.
    """
    sizes, kind = AttentionShape(**shape), getattr(torch, dtype)
    near = Tensors.draw(sizes, 0.75, kind, 2, bench.device.kind)[0]
    far = replace(
        near,
        query=_spread(near.query, last_offset),
        key=_spread(near.key, last_offset),
        value=_spread(near.value, last_offset),
        output=_spread(near.output, last_offset),
    )
    KernelCall(bench, far, tactic)()
    bench.device.synchronize()
    exact = reference(near)
    expected = Expected(exact, with_gates(exact, near.gates), bench.cases.tolerance(dtype))
    verdict = expected.judge(far.output, gated=True, ours=True)
    if not verdict["right"]:
        raise Wrong("offsets beyond 32 bits are wrong", verdict)
    return {}


def _spread(tensor: torch.Tensor, last_offset: int) -> torch.Tensor:
    """Copy a tensor [1, S, H, D] to where its tokens are far apart."""
    batch, tokens, heads, features = tensor.shape
    assert batch == 1
    stride = math.ceil(last_offset / (8 * (tokens - 1))) * 8  # in whole vectors
    room = torch.empty(
        stride * (tokens - 1) + heads * features, dtype=tensor.dtype, device=tensor.device
    )
    spread = room.as_strided(tensor.shape, (0, stride, features, 1))
    return spread.copy_(tensor)
