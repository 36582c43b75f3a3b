"""The C interfaces as ctypes sees them: plugins/include/moh/cuda.h, and those of the emulator."""

import ctypes
from ctypes import (
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_double,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_ssize_t,
    c_uint8,
    c_uint32,
    c_uint64,
    c_void_p,
)

DTYPES = {"bool": 0, "float32": 1, "float16": 2, "bfloat16": 3}
STATUSES = (
    "kOk",
    "kInvalidArgument",
    "kUnsupported",
    "kWorkspaceTooSmall",
    "kCudaError",
    "kNoDevice",
    "kDriverTooOld",
)
TACTICS = {"sparse": 0, "dense": 1}
BLOCKS = {"64by16": 0, "64by32": 1, "128by32": 2}
USUAL_OPEN_SHARE = 0.75
KERNELS = {"cuda": 0, "triton": 1}


class HeadStrides(Structure):
    _fields_ = [("batch", c_ssize_t), ("head", c_ssize_t), ("token", c_ssize_t)]


class AttentionMask(Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_uint8),
        ("batch", c_ssize_t),
        ("head", c_ssize_t),
        ("query", c_ssize_t),
        ("key", c_ssize_t),
    ]


ATTENTION_SIZES = ("q_heads", "kv_heads", "queries", "keys", "head_dim", "value_dim")


class AttentionArgs(Structure):
    _fields_ = [
        ("dtype", c_uint8),
        *((name, c_void_p) for name in ("query", "key", "value", "gates", "output")),
        ("query_strides", HeadStrides),
        ("key_strides", HeadStrides),
        ("value_strides", HeadStrides),
        ("output_strides", HeadStrides),
        ("mask", AttentionMask),
        ("nonpad_kv_seqlen", c_void_p),
        ("key_ranges", c_void_p),
        ("key_ranges_batch", c_ssize_t),
        *((name, c_int32) for name in ("batch", *ATTENTION_SIZES)),
        ("scale", c_float),
        ("causal", c_bool),
    ]


AGGREGATED_POINTERS = (
    *("query", "key", "value", "pooled_key", "pooled_value", "gates"),
    *("query_embedding", "query_scale", "window_bias", "pooled_bias"),
    *("window_tokens", "window_offset", "output"),
)
AGGREGATED_SIZES = (
    *("batch", "heads", "head_dim", "height", "width"),
    *("kernel_height", "kernel_width", "pooled"),
)


class AggregatedAttentionArgs(Structure):
    _fields_ = [
        ("dtype", c_uint8),
        *((name, c_void_p) for name in AGGREGATED_POINTERS),
        *((name, c_int32) for name in AGGREGATED_SIZES),
        ("normalize", c_bool),
        ("epsilon", c_float),
    ]


class RouterArgs(Structure):
    _fields_ = [
        ("dtype", c_uint8),
        ("routed_logits", c_void_p),
        ("shared_logits", c_void_p),
        ("stage_logits", c_void_p),
        ("gates", c_void_p),
        ("tokens", c_int64),
        ("routed", c_int32),
        ("shared", c_int32),
        ("top_k", c_int32),
        ("mask_only", c_bool),
    ]


class AttentionChoice(Structure):
    _fields_ = [
        ("tactic", c_int32),
        ("key_splits", c_int32),
        ("block", c_int32),
        ("reason", c_char_p),
        ("kernel", c_int32),
        ("kernel_reason", c_char_p),
    ]


class Device(Structure):
    _fields_ = [("multiprocessors", c_int32), ("compute_capability", c_int32)]


class TritonAttentionArguments(Structure):
    """What plugins/cuda/triton/attention.py is called with."""

    _fields_ = [
        *(
            (name, c_void_p)
            for name in ("query", "key", "value", "gates", "output", "rows", "counts", "ranges")
        ),
        ("query_strides", HeadStrides),
        ("key_strides", HeadStrides),
        ("value_strides", HeadStrides),
        ("output_strides", HeadStrides),
        ("ranges_batch", c_int64),
        *((name, c_int32) for name in ("pairs", *ATTENTION_SIZES, "causal", "listed")),
        ("scale_log2", c_float),
        ("global_scratch", c_void_p),
        ("profile_scratch", c_void_p),
    ]


class TritonCode(Structure):
    _fields_ = [
        ("compute_capability", c_int32),
        ("dtype", c_uint8),
        ("columns", c_int32),
        ("tile_rows", c_int32),
        ("threads", c_int32),
        ("shared_bytes", c_int32),
        ("kernel", c_char_p),
        ("code", c_void_p),
        ("code_bytes", c_size_t),
    ]


STRUCTS = (
    HeadStrides,
    AttentionMask,
    AttentionArgs,
    AggregatedAttentionArgs,
    RouterArgs,
    AttentionChoice,
    Device,
    TritonAttentionArguments,
    TritonCode,
)


def layout() -> dict[str, int]:
    """Sizes and offsets, named as `moh_cuda_layout` names them."""
    numbers = {}
    for struct in STRUCTS:
        numbers[struct.__name__] = ctypes.sizeof(struct)
        for name, *_ in struct._fields_:
            numbers[f"{struct.__name__}.{name}"] = getattr(struct, name).offset
    return numbers


class EmulatorOptions(Structure):
    """seed: order of lanes, warps and blocks; 0: one after the other. late_copies: asynchronous
    copies are made when waited for, not at once. unwritten: each byte of shared memory that nobody
    has written; NaN, unless set. The others describe the device."""

    _fields_ = [
        ("seed", c_uint32),
        ("late_copies", c_int32),
        ("multiprocessors", c_int32),
        ("compute_capability", c_int32),
        ("unwritten", c_int32),
        ("driver_cuda", c_int32),
    ]


DEFAULT_OPTIONS = {
    "seed": 0,
    "late_copies": 0,
    "multiprocessors": 4,
    "compute_capability": 80,
    "unwritten": 0xFF,
    "driver_cuda": 99,
}


class EmulatorCounts(Structure):
    _fields_ = [
        (name, c_uint64)
        for name in (
            *("launches", "blocks", "switches", "barriers", "warp_operations", "matrix_loads"),
            *("matrix_load_conflicts", "matrix_products", "copies", "max_shared_bytes", "loads"),
        )
    ]


LaunchHook = ctypes.CFUNCTYPE(
    c_int, c_char_p, POINTER(c_uint32), POINTER(c_uint32), c_size_t, c_void_p, c_size_t
)

CodeHook = ctypes.CFUNCTYPE(
    c_int, c_void_p, c_char_p, POINTER(c_uint32), POINTER(c_uint32), c_size_t, POINTER(c_void_p)
)

_ARGS, _DEVICE, _CHOICE = POINTER(AttentionArgs), POINTER(Device), POINTER(AttentionChoice)
FUNCTIONS = {
    "moh_cuda_last_error": (c_char_p, []),
    "moh_cuda_device": (c_int32, [_DEVICE]),
    "moh_cuda_load_only": (None, [c_bool]),
    "moh_cuda_router": (c_int32, [POINTER(RouterArgs), c_void_p, c_void_p]),
    "moh_cuda_triton_kernels": (c_char_p, []),
    "moh_cuda_attention_choose": (c_int32, [_ARGS, _DEVICE, c_float, _CHOICE]),
    "moh_cuda_attention_estimate": (c_int32, [_ARGS, _DEVICE, c_float, _CHOICE, POINTER(c_double)]),
    "moh_cuda_attention_workspace": (c_int32, [_ARGS, _CHOICE, POINTER(c_size_t)]),
    "moh_cuda_attention_check": (c_int32, [_ARGS, _DEVICE, _CHOICE]),
    "moh_cuda_attention": (c_int32, [_ARGS, _CHOICE, c_void_p, c_size_t, c_void_p]),
    "moh_cuda_synthetic_gates": (c_int32, [c_void_p, c_uint8, c_int64, c_float, c_void_p]),
    "moh_cuda_aggregated_attention": (c_int32, [POINTER(AggregatedAttentionArgs), c_void_p]),
}
_TESTING = {
    "moh_cuda_layout": (c_char_p, []),
    "moh_cuda_attention_order": (None, [*[c_int32] * 3, POINTER(c_int32), POINTER(c_int32)]),
    "moh_cuda_attention_resident_blocks": (c_int32, [_ARGS, _CHOICE, _DEVICE]),
    "moh_cuda_conformance_list": (c_char_p, []),
    "moh_cuda_conformance": (c_int, [c_char_p, *[c_void_p, c_size_t] * 2, c_void_p]),
    "moh_emulator_configure": (None, [POINTER(EmulatorOptions)]),
    "moh_emulator_counts": (None, [POINTER(EmulatorCounts)]),
    "moh_emulator_error": (c_char_p, []),
    "moh_emulator_set_launch_hook": (None, [c_void_p]),
    "moh_emulator_set_code_hook": (None, [c_void_p]),
    "moh_emulator_set_triton_codes": (None, [POINTER(TritonCode), c_size_t]),
    "moh_emulator_bank_conflicts": (c_char_p, []),
    "moh_emulator_faults": (c_char_p, []),
    "moh_emulator_fault": (c_int, [c_char_p, c_int, POINTER(c_uint32)]),
}


def declare(library: ctypes.CDLL) -> None:
    """Give the functions that the library has their types."""
    for name, (result, arguments) in (FUNCTIONS | _TESTING).items():
        if hasattr(library, name):
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
