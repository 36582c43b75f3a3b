"""Checks that the shape rules share.

A named or unknown size is compared with nothing: only a certain conflict is refused.
"""

from __future__ import annotations

from moh_deploy.errors import ExportError
from moh_deploy.ops.spec import OpDim, TensorType


def required(op_name: str, name: str, value: TensorType | None) -> TensorType:
    """Return an input that must be there.

    Raises:
        ExportError: It is absent.
    """
    if value is None:
        raise ExportError(f"{op_name}: input '{name}' is absent; it is required.")
    return value


def check_tensor(
    op_name: str, name: str, value: TensorType, dtypes: tuple[str, ...], ranks: tuple[int, ...]
) -> None:
    """Refuse a dtype and a rank that the op does not take.

    Raises:
        ExportError: The dtype is not in `dtypes`, or the rank not in `ranks`.
    """
    if value.dtype not in dtypes:
        raise ExportError(
            f"{op_name}: {name} has dtype {value.dtype}; expected {' or '.join(dtypes)}."
        )
    if len(value.shape) not in ranks:
        expected = " or ".join(map(str, ranks))
        raise ExportError(
            f"{op_name}: {name} has rank {len(value.shape)}, shape {show(value)}; "
            f"expected rank {expected}."
        )


def check_equal(op_name: str, what: str, got: OpDim, expected: OpDim) -> None:
    """Refuse two fixed sizes that differ.

    Raises:
        ExportError: Both are known numbers and not equal.
    """
    if isinstance(got, int) and isinstance(expected, int) and got != expected:
        raise ExportError(f"{op_name}: {what} is {got}; expected {expected}.")


def known(*dims: OpDim) -> OpDim:
    """Return the most definite of several names for one size: a number, else a name, else None."""
    ranked = sorted(dims, key=lambda dim: 0 if isinstance(dim, int) else 1 if dim else 2)
    return ranked[0]


def show(value: TensorType) -> str:
    """Format a shape for a message: `[batch, 7, ?]`."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in value.shape) + "]"
