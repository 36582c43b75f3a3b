"""Dtypes that models are brought to, as users name them."""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from moh_deploy.config.deprecated import DEPRECATED
from moh_deploy.errors import ConfigError

# The runtimes that packages and ONNX models run in. An engine has its own.

# What options, plans and manifests call it.
Runtime = Literal["onnxruntime", "openvino", "onnxruntime-cuda"]

# Each to what reports call it; the first runs what was tuned for none.
RUNTIMES: Mapping[Runtime, str] = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "onnxruntime-cuda": "ONNX Runtime (CUDA)",
}


# What kernels for the CPU multiply attention in.
ComputeType = Literal["float32", "bfloat16"]

# What `precision --to` makes of a float32 package.
LowerPrecision = Literal["float16", "bfloat16", "int8", "int4"]

# When the scales of what products in int8 read are measured: in each run, or once.
Scales = Literal["dynamic", "static"]


@dataclass(frozen=True)
class Precision:
    """The properties of packages in one precision: weights, tolerances, words of reports."""

    weight_bytes: float  # of a weight, with its part of a scale
    # How far a step moves a weight: a share of it, and in few bits a multiple of its scale. None:
    # the export measured what rounding moves.
    step: float | None = None
    # Weights of products have it, and nothing else: within tolerance is never equal.
    few_bits: bool = False
    longer: str = "float32"  # what products have that need more


# All that there are, the shortest first. Beside this, one has its rule in
# validate/compare/tolerances.py, and in few bits its maker in runtime/quantized_package.py.
PRECISIONS: Mapping[str, Precision] = {
    "int4": Precision(0.625, 1.0, few_bits=True, longer="8 bits or float32"),  # 32 share a scale
    "int8": Precision(1, 1.0, few_bits=True),
    "float16": Precision(2, 2.0**-10),
    "bfloat16": Precision(2, 2.0**-7),
    "float32": Precision(4),
    "float64": Precision(8),
}

FEW_BITS = tuple(name for name in get_args(LowerPrecision) if PRECISIONS[name].few_bits)


def dtype_named(text: str, allowed: Collection[str], *, option: str) -> str:
    """Return the dtype that a user's text names, spelled in full: `float16`.

    Raises:
        ConfigError: It is not one of the allowed names.
    """
    old = DEPRECATED.get(text)
    dtype = old.new if old else text
    if dtype not in allowed:
        raise ConfigError(f"{option} is '{text}', expected {either(allowed)}.")
    if old:
        # The frames: here, a public function, its caller.
        warnings.warn(old.message, FutureWarning, stacklevel=3)
    return dtype


def either(names: Collection[str]) -> str:
    """Return names as a sentence has them: `float16, int8 or int4`."""
    *others, last = names
    return f"{', '.join(others)} or {last}"
