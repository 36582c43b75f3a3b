"""Times attention on the GPU against the dense attention of torch, in one run.

Shapes and shares as in docs: B batch, H query heads, Hkv key/value heads, N tokens, D head size.
"""

from __future__ import annotations

import ctypes
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.cuda import abi


@dataclass(frozen=True)
class Shape:
    name: str
    batch: int
    heads: int
    kv_heads: int
    tokens: int
    head_dim: int
    causal: bool = False

    def flops(self, share: float) -> float:
        """Multiply-adds times two of the two products, for a share of open heads."""
        pairs = self.tokens * (self.tokens + 1) / 2 if self.causal else self.tokens**2
        return 4 * self.batch * self.heads * pairs * self.head_dim * share


SHAPES = (
    Shape("A", 1, 32, 32, 2048, 64),
    Shape("B", 8, 16, 16, 256, 72),
    Shape("C", 8, 32, 8, 2048, 128, causal=True),
)
SHARES = (1.0, 0.9, 0.75, 0.5)
_BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
# Tensors of one run are not read again before so many bytes went through the cache.
_ROTATED_BYTES = 256 << 20


def rows(
    library: ctypes.CDLL, *, repeats: int, dtype: torch.dtype = torch.float16
) -> Iterator[dict[str, object]]:
    """Yield one row for each shape and share of open heads: microseconds, and ratios to dense."""
    for shape in SHAPES:
        for share in SHARES:
            yield _row(library, shape, share, repeats, dtype)


def _row(
    library: ctypes.CDLL, shape: Shape, share: float, repeats: int, dtype: torch.dtype
) -> dict[str, object]:
    sets = [Tensors.draw(shape, share, dtype, seed) for seed in range(_sets(shape, dtype))]
    candidates: dict[str, list[Callable[[], object]]] = {
        tactic: [Call(library, one, tactic) for one in sets] for tactic in ("chosen", *abi.TACTICS)
    }
    for name, backend in _BACKENDS.items():
        if (calls := _torch_calls(sets, backend, gated=False)) is not None:
            candidates[name] = calls
            candidates[f"{name} times gates"] = _torch_calls(sets, backend, gated=True) or []
    microseconds = _interleaved(candidates, repeats)
    dense = min(v for k, v in microseconds.items() if k in _BACKENDS)
    gated = min(v for k, v in microseconds.items() if k.endswith("times gates"))
    ours = microseconds["chosen"]
    return {
        "shape": shape.name,
        "share": share,
        "open_share": float((sets[0].gates != 0).double().mean()),
        "us": microseconds,
        "choice": candidates["chosen"][0].choice_text,  # type: ignore[attr-defined]
        "vs_best_dense": dense / ours,
        "vs_best_dense_times_gates": gated / ours,
        "tflops": shape.flops(share) / ours / 1e6,
        "max_error": error(sets[0], candidates["chosen"][0]),
    }


def _sets(shape: Shape, dtype: torch.dtype) -> int:
    numbers = shape.batch * shape.tokens * shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    return max(2, -(-_ROTATED_BYTES // (numbers * dtype.itemsize)))


@dataclass
class Tensors:
    """Inputs and output of one attention, [B, N, H, D]."""

    shape: Shape
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    gates: torch.Tensor
    output: torch.Tensor

    @classmethod
    def draw(
        cls, shape: Shape, share: float, dtype: torch.dtype, seed: int, device: str = "cuda"
    ) -> Tensors:
        """Draw tensors; half of the open heads are shared by all tokens, the others random."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(heads: int) -> torch.Tensor:
            size = (shape.batch, shape.tokens, heads, shape.head_dim)
            return torch.randn(size, generator=generator, device=device).to(dtype)

        open_heads = round(shape.heads * share)
        shared = open_heads // 2 if share < 1 else shape.heads
        size = (shape.batch, shape.tokens, shape.heads)
        rank = torch.rand(size, generator=generator, device=device)
        rank[..., :shared] = 2.0
        chosen = rank.topk(open_heads, dim=-1).indices
        gates = torch.zeros(size, device=device).scatter(-1, chosen, 1.0)
        output = torch.full_like(query := normal(shape.heads), float("nan"))
        return cls(
            shape, query, normal(shape.kv_heads), normal(shape.kv_heads), gates.to(dtype), output
        )


class Call:
    """One call of the kernels: arguments are made once, a call only enqueues."""

    def __init__(self, library: ctypes.CDLL, tensors: Tensors, tactic: str) -> None:
        self._library, self._tensors = library, tensors
        self._args, self._choice = arguments(tensors), abi.AttentionChoice()
        device, size = abi.Device(), ctypes.c_size_t()
        self._check(library.moh_cuda_device(ctypes.byref(device)))
        self._check(
            library.moh_cuda_attention_choose(
                ctypes.byref(self._args), ctypes.byref(device), ctypes.byref(self._choice)
            )
        )
        if tactic in abi.TACTICS:
            self._choice.tactic = abi.TACTICS[tactic]
        self._check(
            library.moh_cuda_attention_workspace(
                ctypes.byref(self._args), ctypes.byref(self._choice), ctypes.byref(size)
            )
        )
        self._workspace = torch.empty(
            max(1, size.value), dtype=torch.uint8, device=tensors.query.device
        )

    @property
    def choice_text(self) -> str:
        tactic = next(name for name, n in abi.TACTICS.items() if n == self._choice.tactic)
        return f"{tactic}, {self._choice.key_splits} key splits: {self._choice.reason.decode()}"

    def __call__(self) -> torch.Tensor:
        self._check(
            self._library.moh_cuda_attention(
                ctypes.byref(self._args),
                ctypes.byref(self._choice),
                self._workspace.data_ptr(),
                self._workspace.numel(),
                torch.cuda.current_stream().cuda_stream if self._workspace.is_cuda else None,
            )
        )
        return self._tensors.output

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(
                f"{abi.STATUSES[status]}: {self._library.moh_cuda_last_error().decode()}"
            )


def arguments(tensors: Tensors) -> abi.AttentionArgs:
    """Return the C struct for tensors [B, N, H, D]."""
    shape = tensors.shape

    def strides(heads: int) -> abi.HeadStrides:
        width = heads * shape.head_dim
        return abi.HeadStrides(shape.tokens * width, shape.head_dim, width)

    name = str(tensors.query.dtype).removeprefix("torch.")
    return abi.AttentionArgs(
        dtype=abi.DTYPES[name],
        query=tensors.query.data_ptr(),
        key=tensors.key.data_ptr(),
        value=tensors.value.data_ptr(),
        gates=tensors.gates.data_ptr(),
        output=tensors.output.data_ptr(),
        query_strides=strides(shape.heads),
        key_strides=strides(shape.kv_heads),
        value_strides=strides(shape.kv_heads),
        output_strides=strides(shape.heads),
        batch=shape.batch,
        q_heads=shape.heads,
        kv_heads=shape.kv_heads,
        queries=shape.tokens,
        keys=shape.tokens,
        head_dim=shape.head_dim,
        value_dim=shape.head_dim,
        scale=shape.head_dim**-0.5,
        causal=shape.causal,
    )


def _torch_calls(
    sets: list[Tensors], backend: SDPBackend, *, gated: bool
) -> list[Callable[[], torch.Tensor]] | None:
    """Return calls of dense attention, or None where the backend refuses the shape."""

    def call(one: Tensors) -> Callable[[], torch.Tensor]:
        query, key, value = (t.transpose(1, 2) for t in (one.query, one.key, one.value))
        gates = one.gates.transpose(1, 2).unsqueeze(-1)
        grouped = one.shape.heads != one.shape.kv_heads

        def run() -> torch.Tensor:
            with sdpa_kernel(backend):
                heads = F.scaled_dot_product_attention(
                    query, key, value, is_causal=one.shape.causal, enable_gqa=grouped
                )
            return heads * gates if gated else heads

        return run

    calls = [call(one) for one in sets]
    try:
        calls[0]()
    except RuntimeError:
        return None
    return calls


def _interleaved(
    candidates: dict[str, list[Callable[[], object]]], repeats: int
) -> dict[str, float]:
    """Return the median microseconds of each; they take turns, on rotating tensors."""
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(repeats + 3):
        for name, calls in candidates.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            calls[round_ % len(calls)]()
            end.record()
            end.synchronize()
            if round_ >= 3:
                samples[name].append(start.elapsed_time(end) * 1000)
    return {name: statistics.median(values) for name, values in samples.items()}


def error(tensors: Tensors, call: Callable[[], object]) -> float:
    """Return the largest difference from float64, on the first batch."""
    call()
    got = tensors.output[:1].double()
    q, k, v = (t[:1].double().transpose(1, 2) for t in (tensors.query, tensors.key, tensors.value))
    group = tensors.shape.heads // tensors.shape.kv_heads
    k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=tensors.shape.causal)
    exact = exact.transpose(1, 2) * tensors.gates[:1].double().unsqueeze(-1)
    return float((got - exact).abs().max())
