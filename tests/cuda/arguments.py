"""The argument structs of the C interface for tensors of a run, wherever they are.

Imports nothing of moh-deploy: a machine with a GPU may have torch and numpy only.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from tests.cuda import abi


class Run(Protocol):
    """One run of an op."""

    @property
    def dtype(self) -> str: ...

    @property
    def attributes(self) -> Mapping[str, int | float | str]: ...


class Tensor(Protocol):
    """A tensor in a kernel's memory; address None: it is absent."""

    @property
    def address(self) -> int | None: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...


def router_args(case: Run, inputs: Sequence[Tensor], output: int, tokens: int) -> abi.RouterArgs:
    routed, shared, stage = inputs
    return abi.RouterArgs(
        dtype=abi.DTYPES[case.dtype],
        routed_logits=routed.address,
        shared_logits=shared.address,
        stage_logits=stage.address,
        gates=output,
        tokens=tokens,
        routed=routed.shape[-1],
        shared=int(case.attributes["num_shared_heads"]),
        top_k=int(case.attributes["top_k"]),
        mask_only=case.attributes["gate_mode"] == "mask",
    )


def attention_args(case: Run, inputs: Sequence[Tensor], output: int) -> abi.AttentionArgs:
    query, key, value, gates, mask, lengths, ranges = (*inputs, None, None, None)[:7]
    q_heads, kv_heads = (int(case.attributes[n]) for n in ("q_num_heads", "kv_num_heads"))
    views = [
        _view(item.shape, heads)
        for item, heads in ((query, q_heads), (key, kv_heads), (value, kv_heads))
    ]
    (batch, queries, head_dim, query_strides), (_, keys, _, key_strides), value_view = views
    _, _, value_dim, value_strides = value_view
    shape = (
        (batch, queries, q_heads * value_dim)
        if len(query.shape) == 3
        else (batch, q_heads, queries, value_dim)
    )
    return abi.AttentionArgs(
        dtype=abi.DTYPES[case.dtype],
        query=query.address,
        key=key.address,
        value=value.address,
        gates=gates.address,
        output=output,
        query_strides=query_strides,
        key_strides=key_strides,
        value_strides=value_strides,
        output_strides=_view(shape, q_heads)[-1],
        mask=_mask(mask),
        nonpad_kv_seqlen=None if lengths is None else lengths.address,
        key_ranges=None if ranges is None else ranges.address,
        key_ranges_batch=0 if ranges is None or ranges.shape[0] == 1 else 2 * queries,
        batch=batch,
        q_heads=q_heads,
        kv_heads=kv_heads,
        queries=queries,
        keys=keys,
        head_dim=head_dim,
        value_dim=value_dim,
        scale=float(case.attributes["scale"]),
        causal=bool(case.attributes["is_causal"]),
    )


def _view(shape: tuple[int, ...], heads: int) -> tuple[int, int, int, abi.HeadStrides]:
    """Batch, tokens, head size and strides of [B, S, H * D] or [B, H, S, D]."""
    if len(shape) == 3:
        batch, tokens, width = shape
        dim = width // heads
        return batch, tokens, dim, abi.HeadStrides(tokens * width, dim, width)
    batch, _, tokens, dim = shape
    return batch, tokens, dim, abi.HeadStrides(heads * tokens * dim, tokens * dim, dim)


def _mask(mask: Tensor | None) -> abi.AttentionMask:
    if mask is None or mask.address is None:
        return abi.AttentionMask()
    shape = (1,) * (4 - len(mask.shape)) + mask.shape
    strides = [
        0 if size == 1 else int(np.prod(shape[axis + 1 :])) for axis, size in enumerate(shape)
    ]
    return abi.AttentionMask(mask.address, abi.DTYPES[mask.dtype], *strides)


def aggregated_attention_args(
    case: Run, inputs: Sequence[Tensor], output: int
) -> abi.AggregatedAttentionArgs:
    query, pooled_key = inputs[0], inputs[3]
    heads = int(case.attributes["num_heads"])
    sizes = {
        n: int(case.attributes[n]) for n in ("height", "width", "kernel_height", "kernel_width")
    }
    pointers = dict(_pointers(inputs), output=output)
    return abi.AggregatedAttentionArgs(
        dtype=abi.DTYPES[case.dtype],
        batch=query.shape[0],
        heads=heads,
        head_dim=query.shape[2] // heads,
        pooled=pooled_key.shape[1],
        normalize=bool(case.attributes["normalize"]),
        epsilon=float(case.attributes["epsilon"]),
        **sizes,
        **pointers,
    )


def _pointers(inputs: Sequence[Tensor]) -> Iterator[tuple[str, int | None]]:
    *names, _ = abi.AGGREGATED_POINTERS
    addresses = [item.address for item in inputs]
    absent = [None] * (len(names) - len(inputs))
    yield from zip(names, addresses + absent, strict=True)
