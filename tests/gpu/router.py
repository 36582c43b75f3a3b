"""The router in the timings: logits, our kernel, the formula in torch's operators."""

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tests.cuda import abi
from tests.gpu.kernels import Bench
from tests.gpu.race import Entrant, Expected, TorchCall
from tests.gpu.stored_cases import Tolerance
from tests.gpu.workloads import RouterShape

OURS = "kernel"


@dataclass(frozen=True)
class Tensors:
    """Logits of every kind, one row a token."""

    shape: RouterShape
    routed: torch.Tensor  # [tokens, routed]
    shared: torch.Tensor  # [tokens, shared]
    stage: torch.Tensor  # [tokens, 2]


def draw(shape: RouterShape, dtype: torch.dtype, rotated_bytes: int, device: str) -> list[Tensors]:
    """Draw sets of logits; they and the gates have so many bytes together."""
    each = 2 * shape.tokens * (shape.routed + shape.shared + 1) * dtype.itemsize
    count = max(2, math.ceil(rotated_bytes / each))
    generator = torch.Generator(device).manual_seed(0)
    routed, shared, stage = (
        torch.randn((count, shape.tokens, heads), generator=generator, device=device).to(dtype)
        for heads in (shape.routed, shape.shared, 2)
    )
    return [Tensors(shape, routed[i], shared[i], stage[i]) for i in range(count)]


def route(routed: torch.Tensor, shared: torch.Tensor, stage: torch.Tensor, k: int) -> torch.Tensor:
    """Compute MoHRouter's weighted gates (docs/ops.md) in the dtype of the logits."""
    probabilities = routed.softmax(dim=-1)
    chosen = probabilities.topk(k, dim=-1)
    kept = chosen.values / chosen.values.sum(dim=-1, keepdim=True)
    weights = 2 * stage.softmax(dim=-1)
    routed_gates = torch.zeros_like(routed).scatter(-1, chosen.indices, kept * k * weights[:, 1:])
    shared_gates = shared.softmax(dim=-1) * shared.shape[1] * weights[:, :1]
    return torch.cat([shared_gates, routed_gates], dim=-1)


def expected(tensors: Tensors, tolerance: Tolerance) -> Expected:
    """Return what the first set's gates should be, computed in float64.

    Heads are chosen by probabilities in float32; where these are equal, the lowest index wins.
    """
    routed, shared, stage = (t.double() for t in (tensors.routed, tensors.shared, tensors.stage))
    probabilities, k = routed.softmax(dim=-1), tensors.shape.top_k
    order = probabilities.float().sort(dim=-1, descending=True, stable=True).indices[:, :k]
    kept = probabilities.gather(-1, order)
    kept = k * kept / kept.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).eps)
    weights = 2 * stage.softmax(dim=-1)
    routed_gates = torch.zeros_like(probabilities).scatter(-1, order, kept * weights[:, 1:])
    shared_gates = shared.softmax(dim=-1) * shared.shape[1] * weights[:, :1]
    exact = torch.cat([shared_gates, routed_gates], dim=-1)
    return Expected(exact, exact, tolerance)


class KernelCall:
    """A call of our kernel: arguments are made once, a call only enqueues."""

    def __init__(self, bench: Bench, tensors: Tensors) -> None:
        shape = tensors.shape
        size = (shape.tokens, shape.shared + shape.routed)
        self.output = torch.full(
            size, math.nan, dtype=tensors.routed.dtype, device=tensors.routed.device
        )
        self._bench, self._tensors = bench, tensors
        self._args = abi.RouterArgs(
            dtype=abi.DTYPES[str(self.output.dtype).removeprefix("torch.")],
            routed_logits=tensors.routed.data_ptr(),
            shared_logits=tensors.shared.data_ptr(),
            stage_logits=tensors.stage.data_ptr(),
            gates=self.output.data_ptr(),
            tokens=shape.tokens,
            routed=shape.routed,
            shared=shape.shared,
            top_k=shape.top_k,
            mask_only=False,
        )

    def __call__(self) -> None:
        self._bench.library.call(
            "moh_cuda_router", ctypes.byref(self._args), None, self._bench.device.stream()
        )


def entries(bench: Bench, sets: Sequence[Tensors]) -> dict[str, Callable[[], Entrant]]:
    """Return the candidates. A new one is a line here."""
    return {
        OURS: lambda: Entrant([KernelCall(bench, tensors) for tensors in sets], gated=True),
        "eager": lambda: _torch(route, sets),
        "compile": lambda: _torch(bench.device.compiled(route), sets),
    }


def _torch(function: Callable[..., torch.Tensor], sets: Sequence[Tensors]) -> Entrant:
    return Entrant(
        [TorchCall(function, (t.routed, t.shared, t.stage, t.shape.top_k)) for t in sets],
        gated=True,
    )
