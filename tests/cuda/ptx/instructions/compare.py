"""Comparison and selection."""

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx.element_types import BOOL, Value
from tests.cuda.ptx.instructions.registry import Decoding, Step, decodes, elementwise

Comparison = Callable[[Value, Value], Value]

COMPARISONS: dict[str, Comparison] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@decodes("setp")
def set_predicate(decoding: Decoding) -> Step:
    name, *_ = decoding.instruction.modifiers
    decoding.options(name)
    compare = _of_floats(name) if decoding.type == "f32" else COMPARISONS.get(name)
    if compare is None:
        raise decoding.unsupported()
    return elementwise(decoding, compare, (decoding.dtype, decoding.dtype), BOOL)


def _of_floats(name: str) -> Comparison | None:
    """Return the comparison; its name ends in `u` where it holds for NaN."""
    if name == "ne":  # numpy's holds for NaN, PTX's does not
        return lambda a, b: (a < b) | (a > b)
    if name.endswith("u") and name[:-1] in COMPARISONS:
        ordered = COMPARISONS[name[:-1]]
        return lambda a, b: ordered(a, b) | np.isnan(a) | np.isnan(b)
    return COMPARISONS.get(name)


@decodes("selp")
def select(decoding: Decoding) -> Step:
    decoding.options()
    dtype = decoding.dtype
    return elementwise(decoding, lambda a, b, p: np.where(p, a, b), (dtype, dtype, BOOL), dtype)
