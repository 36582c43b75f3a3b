"""The limits that are published are those of the kernels, which know better.

Nothing is computed: sizes are checked before anything else, and there is no token.
"""

import ctypes

import pytest

from moh_deploy.ops.plugin_support import PLUGINS
from tests.cuda import abi
from tests.cuda.libraries import Emulator

_MEMORY = ctypes.addressof(ctypes.create_string_buffer(16))
_FLOAT16 = abi.DTYPES["float16"]


def _router(emulator: Emulator, sizes: dict[str, int]) -> int:
    routed, shared = sizes.get("routed_heads", 1), sizes.get("shared_heads", 1)
    args = abi.RouterArgs(
        dtype=_FLOAT16, routed_logits=_MEMORY, gates=_MEMORY, routed=routed, shared=shared, top_k=1
    )
    return emulator.library.moh_cuda_router(ctypes.byref(args), None, None)


def _attention(emulator: Emulator, sizes: dict[str, int]) -> int:
    args = abi.AttentionArgs(dtype=_FLOAT16, q_heads=1, kv_heads=1, scale=1.0, head_dim=8)
    args.value_dim = 8
    for name, size in sizes.items():
        setattr(args, name, size)
    device, choice = abi.Device(100, 80), abi.AttentionChoice()
    choose = emulator.library.moh_cuda_attention_choose
    return choose(ctypes.byref(args), ctypes.byref(device), 0.75, ctypes.byref(choice))


def _aggregated(emulator: Emulator, sizes: dict[str, int]) -> int:
    args = abi.AggregatedAttentionArgs(dtype=_FLOAT16, heads=1, height=1, width=1, pooled=1)
    args.head_dim = sizes.get("head_dim", 8)
    # A window has an odd number of rows and columns: here, one row.
    args.kernel_height, args.kernel_width = 1, (sizes.get("window_places", 1) - 1) | 1
    for name in abi.AGGREGATED_POINTERS:
        setattr(args, name, _MEMORY)
    return emulator.library.moh_cuda_aggregated_attention(ctypes.byref(args), None)


CALLS = {
    "MoHRouter": _router,
    "MoHAttention": _attention,
    "MoHAggregatedAttention": _aggregated,
}
LIMITS = [(op, name) for op, support in PLUGINS.items() for name in support.limits]


@pytest.mark.parametrize(("op", "name"), LIMITS)
def test_kernels_take_what_is_at_the_limit(emulator: Emulator, op: str, name: str):
    status = CALLS[op](emulator, {name: PLUGINS[op].limits[name]})
    assert abi.STATUSES[status] == "kOk", emulator.library.moh_cuda_last_error()


@pytest.mark.parametrize(("op", "name"), [limit for limit in LIMITS if limit[0] != "MoHRouter"])
def test_kernels_refuse_what_is_beyond(emulator: Emulator, op: str, name: str):
    """Routers are limited by shared memory, well beyond what is published."""
    status = CALLS[op](emulator, {name: PLUGINS[op].limits[name] + 2})
    assert abi.STATUSES[status] == "kUnsupported"
