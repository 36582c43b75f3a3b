"""Run the contract on kernels in a process of another architecture.

    python tools/cross/run_cases.py COMMAND...

`COMMAND` starts kernel_driver. Every named case and some drawn ones go through it; the outputs are
judged as everywhere.
"""

import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import IO

import numpy as np
from hypothesis import HealthCheck, given, settings

from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case, find_mismatch, numpy_dtype
from tests.ops.cases import ALL_CASES
from tests.plugins.draws import (
    aggregated_attention_setups,
    attention_setups,
    projection_setups,
    router_setups,
    token_conv_setups,
)

DTYPES = ("bool", "float32", "float16", "bfloat16")  # in the order of moh::DType
DRAWS = 150
MOST_PRODUCTS = 1_000_000


def main(command: list[str]) -> None:
    cases = [*ALL_CASES]
    cases += [*_drawn(attention_setups(most_products=MOST_PRODUCTS)), *_drawn(router_setups())]
    cases += [*_drawn(aggregated_attention_setups()), *_drawn(token_conv_setups())]
    cases += _drawn(projection_setups(most_products=MOST_PRODUCTS))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        problems = [find_mismatch(case, [_run(driver, case)]) for case in cases]
        driver.stdin.write(_numbers(0))
    found = [problem for problem in problems if problem is not None]
    print(f"{len(cases)} cases, {len(found)} wrong", *found[:10], sep="\n")
    sys.exit(bool(found) or driver.returncode)


def _drawn(strategy) -> Iterator[Case]:
    drawn: list[Case] = []

    @settings(
        max_examples=DRAWS, derandomize=True, database=None, suppress_health_check=HealthCheck
    )
    @given(strategy)
    def draw(setup) -> None:
        drawn.append(setup.case())

    draw()
    return iter(drawn)


def _run(driver: subprocess.Popen[bytes], case: Case) -> np.ndarray:
    send = SENDERS[case.op]
    driver.stdin.write(send(case))
    driver.stdin.flush()
    (output,) = OPS[case.op].shape_rule(case.input_types(), case.attributes)
    return _read(driver.stdout, output.shape, numpy_dtype(case.dtype))


def _read(stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    data = stream.read(size)
    if len(data) != size:
        sys.exit(f"the driver ended after {len(data)} of {size} bytes")
    return np.frombuffer(data, dtype).reshape(shape)


def _attention(case: Case) -> bytes:
    query, key, value, gates, mask, lengths = (*case.inputs(), None, None)[:6]
    heads, kv_heads = case.attributes["q_num_heads"], case.attributes["kv_num_heads"]
    length = 1 if query.ndim == 3 else 2
    width = [heads, kv_heads, kv_heads] if query.ndim == 3 else [1, 1, 1]
    sizes = [
        query.shape[0],
        heads,
        kv_heads,
        query.shape[length],
        key.shape[length],
        key.shape[-1] // width[1],
        value.shape[-1] // width[2],
    ]
    scale = _bits(case.attributes["scale"])
    mask_dtype = 0 if mask is None else DTYPES.index(mask.dtype.name)
    header = [DTYPES.index(case.dtype), query.ndim, *sizes, case.attributes["is_causal"], scale]
    tensors = (query, key, value, gates, mask, lengths)
    return _numbers(1, *header, mask_dtype, *_mask_strides(mask)) + _tensors(*tensors)


def _mask_strides(mask: np.ndarray | None) -> list[int]:
    """Elements from one batch, head, query and key to the next; 0 where the mask is broadcast."""
    if mask is None:
        return [0, 0, 0, 0]
    strides = [
        0 if size == 1 else stride // mask.itemsize
        for size, stride in zip(mask.shape, mask.strides, strict=True)
    ]
    return [0] * (4 - mask.ndim) + strides


def _router(case: Case) -> bytes:
    routed, shared, stage = (*case.inputs(), None, None)[:3]
    batch, seq_len = next(a.shape[:2] for a in (routed, shared, stage) if a is not None)
    attributes = case.attributes
    header = [
        DTYPES.index(case.dtype),
        batch * seq_len,
        0 if routed is None else routed.shape[2],
        attributes["num_shared_heads"],
        attributes["top_k"],
        attributes["gate_mode"] == "mask",
    ]
    return _numbers(2, *header) + _tensors(routed, shared, stage)


def _token_conv(case: Case) -> bytes:
    tokens, weight, bias, input_bias = (*case.inputs(), None, None)[:4]
    attributes = case.attributes
    sizes = [tokens.shape[0], attributes["height"], attributes["width"], *weight.shape[::2]]
    header = [
        DTYPES.index(case.dtype),
        *sizes,
        weight.shape[3],
        attributes["activation"] == "gelu",
        attributes["gated"],
    ]
    return _numbers(3, *header) + _tensors(tokens, weight, bias, input_bias)


def _aggregated_attention(case: Case) -> bytes:
    every = len(OPS[case.op].inputs)
    tensors = (*case.inputs(), *[None] * every)[:every]
    attributes = case.attributes
    batch, _, hidden = tensors[0].shape
    header = [
        DTYPES.index(case.dtype),
        batch,
        attributes["num_heads"],
        hidden // attributes["num_heads"],
        *(attributes[n] for n in ("height", "width", "kernel_height", "kernel_width")),
        tensors[3].shape[1],
        attributes["normalize"],
        _bits(attributes["epsilon"]),
    ]
    return _numbers(4, *header) + _tensors(*tensors)


def _query_projection(case: Case) -> bytes:
    x, weight = case.inputs()[:2]
    return _projection(5, case, features=x.shape[2], hidden=weight.shape[1])


def _output_projection(case: Case) -> bytes:
    x, weight = case.inputs()[:2]
    return _projection(6, case, features=weight.shape[1], hidden=x.shape[2])


def _projection(number: int, case: Case, *, features: int, hidden: int) -> bytes:
    tensors = (*case.inputs(), None)[:4]
    heads = case.attributes["num_heads"]
    tokens = tensors[0].shape[0] * tensors[0].shape[1]
    header = [DTYPES.index(case.dtype), tokens, features, heads, hidden // heads]
    return _numbers(number, *header) + _tensors(*tensors)


SENDERS = {
    "MoHAggregatedAttention": _aggregated_attention,
    "MoHAttention": _attention,
    "MoHOutputProjection": _output_projection,
    "MoHQueryProjection": _query_projection,
    "MoHRouter": _router,
    "MoHTokenConv": _token_conv,
}


def _bits(number: float) -> int:
    bits: int = struct.unpack("<I", struct.pack("<f", number))[0]
    return bits


def _numbers(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}q", *numbers)


def _tensors(*tensors: np.ndarray | None) -> bytes:
    parts = [b"" if tensor is None else tensor.tobytes() for tensor in tensors]
    return b"".join(_numbers(len(part)) + part for part in parts)


if __name__ == "__main__":
    main(sys.argv[1:])
