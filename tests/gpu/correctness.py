"""Runs stored contract cases on the GPU: outputs poisoned before, guards around what is written."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from tests.cuda import abi
from tests.cuda.arguments import aggregated_attention_args, attention_args, router_args
from tests.gpu.stored_cases import StoredCase, StoredTensor

_GUARD_BYTES = 256
_GUARD, _UNWRITTEN = 0xA5, 0x5A

# Tactic and key splits of an attention; None: as the library chooses.
PLANS: tuple[tuple[str, int] | None, ...] = (
    None,
    *((tactic, splits) for tactic in abi.TACTICS for splits in (1, 3)),
)


def find_problems(
    library: ctypes.CDLL, cases: Iterable[StoredCase], *, device: str = "cuda"
) -> Iterator[str]:
    """Yield a sentence for each case and plan that is wrong.

    Args:
        device: Where the library's kernels work: `cpu` for the emulator, to rehearse this.
    """
    for case in cases:
        for plan in PLANS if case.op == "MoHAttention" else (None,):
            problem = _Run(library, case, plan, device).find_problem()
            if problem is not None:
                yield f"{problem} (plan: {plan or 'as chosen'})"


class _Guarded:
    """Bytes on the GPU that nobody has written yet, between guards."""

    def __init__(self, size: int, device: str) -> None:
        total = size + 2 * _GUARD_BYTES
        self._all = torch.full((total,), _GUARD, dtype=torch.uint8, device=device)
        self.bytes = self._all[_GUARD_BYTES : _GUARD_BYTES + size]
        self.bytes.fill_(_UNWRITTEN)

    @property
    def address(self) -> int:
        return self._all.data_ptr() + _GUARD_BYTES

    def is_intact(self) -> bool:
        ends = self._all[:_GUARD_BYTES], self._all[_GUARD_BYTES + self.bytes.numel() :]
        return all(bool((end == _GUARD).all()) for end in ends)


@dataclass(frozen=True)
class _Input:
    address: int | None
    shape: tuple[int, ...]
    dtype: str
    data: torch.Tensor | None = None

    @classmethod
    def of(cls, stored: StoredTensor | None, device: str) -> _Input:
        if stored is None:
            return cls(None, (0,), "")
        # An empty tensor has an address, too.
        data = torch.zeros(max(1, stored.data.size), dtype=torch.uint8, device=device)
        data[: stored.data.size] = torch.from_numpy(stored.data.copy())
        return cls(data.data_ptr(), stored.shape, stored.dtype, data)


class _Run:
    def __init__(
        self, library: ctypes.CDLL, case: StoredCase, plan: tuple[str, int] | None, device: str
    ) -> None:
        self._library, self._case, self._plan, self._device = library, case, plan, device
        self._inputs = [_Input.of(one, device) for one in case.tensors]
        self._dtype = getattr(torch, case.dtype)
        self._output = _Guarded(case.reference.size * self._dtype.itemsize, device)

    def find_problem(self) -> str | None:
        try:
            self._enqueue()
            self._synchronize()
        except RuntimeError as error:
            return f"{self._case.name}: {error}"
        if not self._output.is_intact():
            return f"{self._case.name}: bytes beside the output were written to"
        return self._case.find_mismatch(self._output.bytes.view(self._dtype))

    def _enqueue(self) -> None:
        case, inputs, output = self._case, self._inputs, self._output.address
        if case.op == "MoHRouter":
            shape = next(one.shape for one in inputs if one.dtype)
            args = router_args(case, inputs, output, shape[0] * shape[1])
            self._call("moh_cuda_router", ctypes.byref(args), None, None)
        elif case.op == "MoHAggregatedAttention":
            args = aggregated_attention_args(case, inputs, output)
            self._call("moh_cuda_aggregated_attention", ctypes.byref(args), None)
        else:
            self._attend(attention_args(case, inputs, output))

    def _attend(self, args: abi.AttentionArgs) -> None:
        device, choice, size = abi.Device(), abi.AttentionChoice(), ctypes.c_size_t()
        described = ctypes.byref(args)
        self._call("moh_cuda_device", ctypes.byref(device))
        self._call(
            "moh_cuda_attention_choose", described, ctypes.byref(device), ctypes.byref(choice)
        )
        if self._plan is not None:
            tactic, choice.key_splits = self._plan
            choice.tactic = abi.TACTICS[tactic]
        self._call(
            "moh_cuda_attention_workspace", described, ctypes.byref(choice), ctypes.byref(size)
        )
        workspace = _Guarded(size.value, self._device)
        address = workspace.address if size.value else None
        self._call("moh_cuda_attention", described, ctypes.byref(choice), address, size.value, None)
        self._synchronize()
        if not workspace.is_intact():
            raise RuntimeError("bytes beside the workspace were written to")

    def _synchronize(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = self._library.moh_cuda_last_error().decode()
            raise RuntimeError(f"{name}: {abi.STATUSES[status]}: {text}")
