"""The kernels' C interface as a test double: it answers as told, and keeps what it was asked."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.cuda import abi

# In the order of the table in fake_kernels.cc, with the function that each stands for.
_STANDS_FOR = {
    "device": "device",
    "router": "router",
    "choose": "attention_choose",
    "workspace": "attention_workspace",
    "attention": "attention",
    "gates": "synthetic_gates",
    "aggregated": "aggregated_attention",
    "check": "attention_check",
}
_SIGNATURES = {"last_error": ctypes.CFUNCTYPE(ctypes.c_void_p)} | {
    name: ctypes.CFUNCTYPE(ctypes.c_int32, *abi.FUNCTIONS[f"moh_cuda_{function}"][1])
    for name, function in _STANDS_FOR.items()
}


class _Table(ctypes.Structure):
    _fields_ = tuple(_SIGNATURES.items())


@dataclass
class Kernels:
    """What the kernels answer, and what they were called with.

    Attributes:
        status: Of each call that runs something.
        multiprocessors: 0: there is no GPU.
        no_device: The status then.
        choose: (rows of queries) -> (tactic, key_splits).
        open_shares: That a choice was asked for.
        workspace: (args, choice) -> bytes.
        has_triton: Whether the GPU runs a kernel of Triton.
    """

    status: int = 0
    error: str = "MoHRouter: the launch failed."
    multiprocessors: int = 100
    no_device: str = "kNoDevice"
    choose: Callable[[int], tuple[int, int]] = lambda queries: (0, 1)
    workspace: Callable[[abi.AttentionArgs, abi.AttentionChoice], int] = lambda args, choice: 1000
    has_triton: bool = False
    calls: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    devices: list[int] = field(default_factory=list)
    device_calls: int = 0
    open_shares: list[float] = field(default_factory=list)

    def install(self, library: Path) -> None:
        """Answer for the kernels of a library until the next one does."""
        self._library = ctypes.CDLL(str(library))
        self.take_loads()
        table = _Table.in_dll(self._library, "fake_kernels")
        self._kept = {n: kind(getattr(self, f"_{n}")) for n, kind in _SIGNATURES.items()}
        for name, function in self._kept.items():
            setattr(table, name, function)

    def take_loads(self) -> int:
        """Return how many calls since the last time were to load kernels, and run none."""
        return self._library.fake_kernels_take_loads()

    def _keep(self, name: str, **values: object) -> int:
        self.calls.append((name, values))
        return self.status

    def _last_error(self) -> int:
        self._text = ctypes.create_string_buffer(self.error.encode())
        return ctypes.addressof(self._text)

    def _device(self, device) -> int:
        self.device_calls += 1
        device.contents.multiprocessors = self.multiprocessors
        device.contents.compute_capability = 90
        return 0 if self.multiprocessors else abi.STATUSES.index(self.no_device)

    def _router(self, args, counts, stream) -> int:
        return self._keep("router", **_values(args.contents), counts=counts)

    def _choose(self, args, device, open_share, choice) -> int:
        self.devices.append(device.contents.multiprocessors)
        self.open_shares.append(open_share)
        tactic, splits = self.choose(args.contents.queries)
        choice.contents.tactic, choice.contents.key_splits = tactic, splits
        return 0

    def _workspace(self, args, choice, size) -> int:
        size[0] = self.workspace(args.contents, choice.contents)
        return 0

    def _attention(self, args, choice, workspace, size, stream) -> int:
        chosen = {n: getattr(choice.contents, n) for n in ("tactic", "key_splits", "kernel")}
        memory = {"workspace": workspace, "workspace_bytes": size}
        return self._keep("attention", **_values(args.contents), **chosen, **memory)

    def _gates(self, gates, dtype, count, open_share, stream) -> int:
        return self._keep("gates", gates=gates, dtype=dtype, count=count, open_share=open_share)

    def _check(self, args, device, choice) -> int:
        is_there = self.has_triton or choice.contents.kernel == abi.KERNELS["cuda"]
        return 0 if is_there else abi.STATUSES.index("kUnsupported")

    def _aggregated(self, args, stream) -> int:
        return self._keep("aggregated", **_values(args.contents))


def _values(struct: ctypes.Structure) -> dict[str, object]:
    """Return the fields as Python's values; inner structs as dicts."""
    values = {name: getattr(struct, name) for name, *_ in struct._fields_}
    return {n: _values(v) if isinstance(v, ctypes.Structure) else v for n, v in values.items()}
