"""Dtypes that models are brought to, as users name them."""

from collections.abc import Collection, Mapping
from typing import Literal

from moh_deploy.errors import ConfigError

# The runtimes that packages and ONNX models run in, on the CPU. An engine has its own.

# What options, plans and manifests call it.
Runtime = Literal["onnxruntime", "openvino"]

# Each to what reports call it; the first runs what was tuned for none.
RUNTIMES: Mapping[Runtime, str] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


# What the weights of products may be rounded to.
IntegerPrecision = Literal["int8", "int4"]

# What kernels for the CPU multiply attention in.
ComputeType = Literal["float32", "bfloat16"]

# What `precision --to` makes of a float32 package.
LowerPrecision = Literal["float16", "bfloat16", "int8", "int4"]

# Spellings of release 0.1, understood for one more.
_OLD_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def dtype_named(text: str, allowed: Collection[str], *, option: str) -> str:
    """Return the dtype that a user's text names, spelled in full: `float16`.

    Raises:
        ConfigError: It is none of those that are allowed.
    """
    dtype = _OLD_NAMES.get(text, text)
    if dtype not in allowed:
        *others, last = allowed
        raise ConfigError(f"{option} is '{text}', expected {', '.join(others)} or {last}.")
    return dtype
