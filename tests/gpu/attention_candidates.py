"""Who computes attention in the timings: our kernels, and what a user would take instead.

A new candidate is one line in `CANDIDATES`.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.attention import Tensors, kernel_calls
from tests.gpu.kernels import Bench
from tests.gpu.race import Entrant, TorchCall

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Query, key and value [B, H, S, D] to heads [B, H, S, D]."""


@dataclass(frozen=True)
class Candidate:
    """A way to compute attention.

    Attributes:
        enter: Makes calls for sets of tensors.
        ours: It computes gates, too, and a wrong result is our error.
        compiled: It takes seconds to be compiled, for each shape.
    """

    name: str
    enter: Callable[[Bench, Sequence[Tensors]], Entrant]
    ours: bool = False
    compiled: bool = False


def _kernel(name: str, tactic: str, *, block: str = "", kernel: str = "") -> Candidate:
    def enter(bench: Bench, sets: Sequence[Tensors]) -> Entrant:
        calls = kernel_calls(bench, sets, tactic, block=block, kernel=kernel)
        return Entrant(calls, gated=True, note=calls[0].note)

    return Candidate(name, enter, ours=True)


def _fused(name: str, backend: SDPBackend) -> list[Candidate]:
    """A backend of scaled_dot_product_attention, without gates and times gates."""

    def context() -> AbstractContextManager[None]:
        return sdpa_kernel(backend)

    def enter(bench: Bench, sets: Sequence[Tensors], gated: bool) -> Entrant:
        attend, note = _sdpa(sets[0], grouped=True), ""
        with context():
            try:
                _torch_calls(sets[:1], attend, gated=gated)[0]()
            except RuntimeError:
                if sets[0].shape.heads == sets[0].shape.kv_heads:
                    raise
                # A backend without grouped heads: given keys for each head, made beforehand.
                sets, note = [_ungrouped(each) for each in sets], "keys repeated beforehand"
                attend = _sdpa(sets[0], grouped=False)
        return Entrant(_torch_calls(sets, attend, gated=gated), gated, context, note)

    return [
        Candidate(name, lambda bench, sets: enter(bench, sets, False)),
        Candidate(f"{name} times gates", lambda bench, sets: enter(bench, sets, True)),
    ]


def _compiled(name: str, make: Callable[[Bench, Tensors], Attend]) -> list[Candidate]:
    """A function that torch.compile makes one of, together with the gates if it has any."""

    def enter(bench: Bench, sets: Sequence[Tensors], gated: bool) -> Entrant:
        compiled = bench.device.compiled(_call(make(bench, sets[0]), gated=gated))
        return Entrant([_torch_call(compiled, each) for each in sets], gated)

    return [
        Candidate(name, lambda bench, sets: enter(bench, sets, False), compiled=True),
        Candidate(
            f"{name} times gates", lambda bench, sets: enter(bench, sets, True), compiled=True
        ),
    ]


def _sdpa(one: Tensors, *, grouped: bool) -> Attend:
    shape = one.shape
    # A single query sees every key; torch's own flag would let it see the first one only.
    causal = shape.causal and shape.queries > 1 and not shape.hides
    mask = one.hiding.by_key(shape.keys) if shape.hides else None
    grouped = grouped and shape.heads != shape.kv_heads

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )

    return attend


def _flex(bench: Bench, one: Tensors) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    shape, seen = one.shape, one.hiding.seen
    mask = None
    if shape.hides:
        mask = create_block_mask(
            lambda b, h, q, k: (k >= seen[b, q, 0]) & (k < seen[b, q, 1]),
            *(shape.batch, None, shape.queries, shape.keys, bench.device.kind),
        )
    elif shape.causal and shape.queries > 1:
        mask = create_block_mask(
            lambda b, h, q, k: q >= k, None, None, shape.queries, shape.keys, bench.device.kind
        )
    grouped = shape.heads != shape.kv_heads

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        heads = flex_attention(query, key, value, block_mask=mask, enable_gqa=grouped)
        assert isinstance(heads, torch.Tensor)
        return heads

    return attend


def _torch_calls(sets: Sequence[Tensors], attend: Attend, *, gated: bool) -> list[TorchCall]:
    function = _call(attend, gated=gated)
    return [_torch_call(function, each) for each in sets]


def _call(attend: Attend, *, gated: bool) -> Callable[..., torch.Tensor]:
    def call(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gates: torch.Tensor
    ) -> torch.Tensor:
        heads = attend(query, key, value)
        heads = heads * gates if gated else heads
        return heads.transpose(1, 2)  # [B, S, H, D]

    return call


def _torch_call(function: Callable[..., torch.Tensor], one: Tensors) -> TorchCall:
    by_head = [tensor.transpose(1, 2) for tensor in (one.query, one.key, one.value)]
    gates = one.gates.transpose(1, 2).unsqueeze(-1)  # [B, H, S, 1]
    return TorchCall(function, (*by_head, gates))


def _ungrouped(one: Tensors) -> Tensors:
    group = one.shape.heads // one.shape.kv_heads
    key, value = (t.repeat_interleave(group, dim=2) for t in (one.key, one.value))
    return replace(one, key=key, value=value)


CANDIDATES: tuple[Candidate, ...] = (
    _kernel("chosen", tactic="as the library chooses"),
    _kernel("sparse", tactic="sparse"),
    _kernel("dense", tactic="dense"),
    _kernel("sparse, 16 rows a warp", tactic="sparse", block="64by16"),
    _kernel("sparse by Triton", tactic="sparse", kernel="triton"),
    _kernel("dense by Triton", tactic="dense", kernel="triton"),
    *_fused("flash", SDPBackend.FLASH_ATTENTION),
    *_fused("cudnn", SDPBackend.CUDNN_ATTENTION),
    *_fused("efficient", SDPBackend.EFFICIENT_ATTENTION),
    *_compiled("compile", lambda bench, item: _sdpa(item, grouped=True)),
    *_compiled("flex", _flex),
)
