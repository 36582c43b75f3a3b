"""Tensors of an attention, our kernels called on them, and what they should compute."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tests.cuda import abi
from tests.gpu.kernels import Bench
from tests.gpu.workloads import AttentionShape


@dataclass(frozen=True)
class Hiding:
    """Which keys queries see, and the inputs of our kernels that say so beside `causal`."""

    seen: torch.Tensor  # [B, S, 2]: the first key and the end
    mask: torch.Tensor | None = None  # bool [B, 1, 1, T] or [1, 1, S, T]
    lengths: torch.Tensor | None = None  # [B]
    ranges: torch.Tensor | None = None  # [1, S, 2]

    @classmethod
    def of(cls, shape: AttentionShape, device: str) -> Hiding:
        rows = [[shape.seen(b, s) for s in range(shape.queries)] for b in range(shape.batch)]
        tokens = [shape.tokens(b) for b in range(shape.batch)]
        seen, lengths = (torch.tensor(numbers, device=device) for numbers in (rows, tokens))
        hiding = cls(seen)
        if shape.hides == "padding":
            keys = torch.arange(shape.keys, device=device)
            return replace(hiding, mask=(keys < lengths[:, None])[:, None, None])
        if shape.hides == "mask":
            return replace(hiding, mask=hiding.by_key(shape.keys))
        if shape.hides == "window":
            # As of a model that is causal besides: `is_causal` says where they end.
            return replace(hiding, ranges=torch.stack([seen[..., 0], seen[..., 1] + 99], dim=-1))
        return replace(hiding, lengths=lengths) if shape.hides == "lengths" else hiding

    def by_key(self, keys: int) -> torch.Tensor:
        """Return whether a query sees a key, bool [B, 1, S, T]."""
        key, seen = torch.arange(keys, device=self.seen.device), self.seen[:, None, :, None]
        return (key >= seen[..., 0]) & (key < seen[..., 1])


@dataclass(frozen=True)
class Tensors:
    """Inputs and output of one attention, each [B, S, H, D]; gates [B, S, H]."""

    shape: AttentionShape
    hiding: Hiding
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    gates: torch.Tensor
    output: torch.Tensor

    @classmethod
    def draw(
        cls, shape: AttentionShape, share: float, dtype: torch.dtype, sets: int, device: str
    ) -> list[Tensors]:
        """Draw sets of tensors; gates as `draw_gates` has them."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(tokens: int, heads: int) -> torch.Tensor:
            size = (sets, shape.batch, tokens, heads, shape.head_dim)
            return torch.randn(size, generator=generator, device=device, dtype=torch.float32).to(
                dtype
            )

        size = (sets, shape.batch, shape.queries, shape.heads)
        gates = draw_gates(size, share, generator, device).to(dtype)
        query = normal(shape.queries, shape.heads)
        key, value = (normal(shape.keys, shape.kv_heads) for _ in range(2))
        drawn = (query, key, value, gates, torch.full_like(query, math.nan))
        hiding = Hiding.of(shape, device)
        return [cls(shape, hiding, *of_one_set) for of_one_set in zip(*drawn, strict=True)]

    @staticmethod
    def sets_for(shape: AttentionShape, dtype: torch.dtype, rotated_bytes: int) -> int:
        """Return how many sets have so many bytes together."""
        tokens = 2 * shape.queries * shape.heads + 2 * shape.keys * shape.kv_heads
        numbers = shape.batch * tokens * shape.head_dim
        return max(2, math.ceil(rotated_bytes / (numbers * dtype.itemsize)))


class KernelCall:
    """A call of our kernels: arguments and workspace are made once, a call only enqueues.

    Args:
        tactic: One of `abi.TACTICS`, or anything else: as the library chooses.
        block: One of `abi.BLOCKS`, likewise.
        kernel: One of `abi.KERNELS`, likewise.

    Raises:
        Refused: The library has no such kernel for these tensors on this GPU.
    """

    def __init__(
        self, bench: Bench, tensors: Tensors, tactic: str, *, block: str = "", kernel: str = ""
    ) -> None:
        self.output = tensors.output
        self._bench = bench
        self._args, self._choice = arguments(tensors), abi.AttentionChoice()
        device, size = bench.library.device(), ctypes.c_size_t()
        described, chosen = ctypes.byref(self._args), ctypes.byref(self._choice)
        # As an engine's caller, who knows the share of open gates on average.
        share = float((tensors.gates != 0).float().mean())
        bench.library.call(
            "moh_cuda_attention_choose", described, ctypes.byref(device), share, chosen
        )
        if tactic in abi.TACTICS:
            self._choice.tactic = abi.TACTICS[tactic]
        if block:
            self._choice.block = abi.BLOCKS[block]
        if kernel:
            self._choice.kernel, self._choice.key_splits = abi.KERNELS[kernel], 1
        bench.library.call("moh_cuda_attention_check", described, ctypes.byref(device), chosen)
        bench.library.call("moh_cuda_attention_workspace", described, chosen, ctypes.byref(size))
        self._workspace = torch.empty(
            max(1, size.value), dtype=torch.uint8, device=tensors.query.device
        )

    @property
    def note(self) -> str:
        """Which way was chosen, and why."""
        tactic, block, kernel = (
            next(name for name, number in names.items() if number == chosen)
            for names, chosen in (
                (abi.TACTICS, self._choice.tactic),
                (abi.BLOCKS, self._choice.block),
                (abi.KERNELS, self._choice.kernel),
            )
        )
        where = "Triton" if kernel == "triton" else f"blocks of {block}"
        splits, reason = self._choice.key_splits, self._choice.reason.decode()
        return f"{tactic}, {where}, {splits} key splits: {reason}"

    def __call__(self) -> None:
        self._bench.library.call(
            "moh_cuda_attention",
            ctypes.byref(self._args),
            ctypes.byref(self._choice),
            self._workspace.data_ptr(),
            self._workspace.numel(),
            self._bench.device.stream(),
        )


def arguments(tensors: Tensors) -> abi.AttentionArgs:
    """Return the C struct for tensors, which may have any strides."""
    shape, hiding = tensors.shape, tensors.hiding
    name = str(tensors.query.dtype).removeprefix("torch.")
    mask = abi.AttentionMask()
    if hiding.mask is not None:
        # A size of 1 is one for all.
        strides = (hiding.mask.stride(i) if hiding.mask.shape[i] > 1 else 0 for i in range(4))
        mask = abi.AttentionMask(hiding.mask.data_ptr(), abi.DTYPES["bool"], *strides)
    return abi.AttentionArgs(
        dtype=abi.DTYPES[name],
        query=tensors.query.data_ptr(),
        key=tensors.key.data_ptr(),
        value=tensors.value.data_ptr(),
        gates=tensors.gates.data_ptr(),
        output=tensors.output.data_ptr(),
        query_strides=_strides(tensors.query),
        key_strides=_strides(tensors.key),
        value_strides=_strides(tensors.value),
        output_strides=_strides(tensors.output),
        mask=mask,
        nonpad_kv_seqlen=None if hiding.lengths is None else hiding.lengths.data_ptr(),
        key_ranges=None if hiding.ranges is None else hiding.ranges.data_ptr(),
        batch=shape.batch,
        q_heads=shape.heads,
        kv_heads=shape.kv_heads,
        queries=shape.queries,
        keys=shape.keys,
        head_dim=shape.head_dim,
        value_dim=shape.head_dim,
        scale=shape.head_dim**-0.5,
        causal=shape.causal and shape.hides != "mask",
    )


def _strides(tensor: torch.Tensor) -> abi.HeadStrides:
    batch, token, head, _ = tensor.stride()
    return abi.HeadStrides(batch, head, token)


def reference(tensors: Tensors) -> torch.Tensor:
    """Return attention without gates in float64, [B, S, H, D]: docs/ops.md, MoHAttention."""
    return torch.stack([_of_batch(tensors, b) for b in range(tensors.shape.batch)])


def _of_batch(tensors: Tensors, batch: int) -> torch.Tensor:
    shape = tensors.shape
    group = shape.heads // shape.kv_heads
    query, key, value = (
        tensor[batch].double().transpose(0, 1)  # [H, S, D]
        for tensor in (tensors.query, tensors.key, tensors.value)
    )
    hidden = ~tensors.hiding.by_key(shape.keys)[batch, 0]
    heads = []
    for head in range(shape.heads):
        scores = query[head] @ key[head // group].T * shape.head_dim**-0.5  # [S, T]
        scores = scores.masked_fill(hidden, -math.inf)
        heads.append(scores.softmax(dim=-1) @ value[head // group])
    return torch.stack(heads, dim=1)  # [S, H, D]


def with_gates(exact: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Multiply heads [B, S, H, D] by gates [B, S, H]."""
    return exact * gates.double().unsqueeze(-1)


def draw_gates(
    size: tuple[int, ...], share: float, generator: torch.Generator, device: str
) -> torch.Tensor:
    """Draw gates [..., H]: half of the open ones are shared by all tokens, the others random."""
    heads = size[-1]
    open_heads = round(heads * share)
    shared = open_heads // 2 if share < 1 else heads
    rank = torch.rand(size, generator=generator, device=device)
    rank[..., :shared] = 2.0
    chosen = rank.topk(open_heads, dim=-1).indices
    weights = 0.5 + torch.rand(size, generator=generator, device=device)
    return torch.zeros(size, device=device).scatter(-1, chosen, weights.gather(-1, chosen))


def kernel_calls(
    bench: Bench, sets: Sequence[Tensors], tactic: str, *, block: str = "", kernel: str = ""
) -> list[KernelCall]:
    return [KernelCall(bench, tensors, tactic, block=block, kernel=kernel) for tensors in sets]
