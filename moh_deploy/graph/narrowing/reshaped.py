"""Follow entries of a Reshape's result to an axis of what it reads, and change its shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from moh_deploy.graph.narrowing.narrowing import (
    Entries,
    Narrowing,
    NotNarrowedError,
    axis_size,
    constant,
    dims_of,
)

_Dims = Sequence[int | str | None]


def source_axis(given: ir.Value, value: ir.Value, axis: int, kept: Entries) -> tuple[int, Entries]:
    """Return the axis of a Reshape's input, and the entries along it, that hold what is wanted.

    Args:
        given: What it reads, such as [B, S, H*D].
        value: What it makes, such as [B, S, H, D].
        axis: Of the result.
        kept: Entries along it.

    Raises:
        NotNarrowedError: They are not all of some entries along one axis.
    """
    before, after = dims_of(given), dims_of(value)
    for own, new in _same_elements(before, after):
        if axis in new:
            found = _entries(
                [int(before[i] or 0) for i in own],
                [int(after[i] or 0) for i in new],
                axis - new[0],
                kept,
            )
            if found is not None:
                return own[found[0]], found[1]
    raise NotNarrowedError(
        f"'{value.name}' {list(after)} is reshaped from {list(before)}, in which its heads are not"
        " apart"
    )


def _same_elements(before: _Dims, after: _Dims) -> Iterator[tuple[range, range]]:
    """Yield runs of axes that hold the same elements on both sides, the last first: of [B, S, H*D]
    and [B, S, H, D] the last and the last two."""
    i, j = len(before), len(after)
    while i and j:
        stop_i, stop_j, i, j = i, j, i - 1, j - 1
        left, right = before[i], after[j]
        while left != right:
            # The smaller side takes one more axis; sizes that are not known end the search.
            if not isinstance(left, int) or not isinstance(right, int):
                return
            if left < right:
                i -= 1
                more = before[i] if i >= 0 else None
            else:
                j -= 1
                more = after[j] if j >= 0 else None
            if not isinstance(more, int):
                return
            left, right = (left * more, right) if left < right else (left, right * more)
        if isinstance(left, int):
            yield range(i, stop_i), range(j, stop_j)
        elif left is None:
            return


def _entries(
    before: Sequence[int], after: Sequence[int], axis: int, kept: Entries
) -> tuple[int, Entries] | None:
    """Return the axis of `before`, and entries along it, that are those of an axis of `after`."""
    wanted = np.zeros(after, np.bool_)
    wanted[(slice(None),) * axis + (list(kept),)] = True
    # The same elements in the same order, in the axes in front of the Reshape.
    wanted = wanted.reshape(before)
    for own in range(len(before)):
        others = tuple(i for i in range(len(before)) if i != own)
        entries = wanted.any(axis=others)  # [size of this axis]
        shape = [-1 if i == own else 1 for i in range(len(before))]
        if (wanted == entries.reshape(shape)).all():
            return own, tuple(map(int, np.flatnonzero(entries)))
    return None


def resized(
    narrowing: Narrowing, place: ir.Node, shape: ir.Value, axis: int, size: int
) -> ir.Value:
    """Return a shape with another size along an axis.

    Args:
        place: Who reads it: what is added for it stands in front.
        shape: Stored, or put together of sizes by a Concat.

    Raises:
        NotNarrowedError: It is computed in another way.
    """
    stored = constant(shape)
    if stored is not None:
        changed = stored.copy()
        changed[axis] = size
        return narrowing.weight(f"{shape.name}.kept", changed)
    node = shape.producer()
    if node is None or node.op_type != "Concat":
        raise NotNarrowedError(f"'{shape.name}' is a shape that is computed")
    pieces, start = list(node.inputs), 0
    for number, piece in enumerate(pieces):
        assert piece is not None
        stop = start + axis_size(piece, 0)
        if start <= axis < stop:
            is_size = stop - start == 1
            pieces[number] = (
                narrowing.weight(f"{piece.name}.kept", np.array([size], np.int64))
                if is_size
                else resized(narrowing, place, piece, axis - start, size)
            )
        start = stop
    made = narrowing.node(node, "Concat", pieces, node.attributes.values(), like=node.outputs)
    return made.outputs[0]
