"""Keys and values of the query heads that stay, where several of these share one.

    query heads 0 1 2 3 | 4 5 6 7 read key heads 0 | 1.   Kept: 0 1 2 3 | 5 6

The groups are left with 4 and 2 query heads, and the operator knows groups of one size: of 2, with
key head 0 twice. It is repeated behind its projection, which makes it once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from moh_deploy.graph.narrowing.narrowing import (
    InputReachedError,
    Narrowing,
    NotNarrowedError,
    axis_size,
    dims_of,
    packed,
    with_size,
)


@dataclass
class KeyHeads:
    """The key/value heads of one layer.

    Attributes:
        ends: What the layer makes, and its gates.
        heads: How many there are.
        used: Number of each that stays to how many query heads read it.
        notes: What a user should know, in sentences.
    """

    narrowing: Narrowing
    ends: Collection[ir.Value]
    heads: int
    used: Mapping[int, int]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        group = math.gcd(*self.used.values())
        self._times = {head: self.used[head] // group for head in sorted(self.used)}
        if self.num_heads > len(self._times):
            self.notes.append(
                f"its {len(self._times)} key/value heads are repeated to {self.num_heads}: the"
                " groups that are left are not of one size"
            )

    @property
    def num_heads(self) -> int:
        """The number of heads that the attention reads."""
        return sum(self._times.values())

    def of(self, value: ir.Value | None) -> ir.Value:
        """Return the keys, or the values, that the attention is to read."""
        assert value is not None
        kept = tuple(self._times)
        if len(kept) < self.heads:
            why = self._why_whole(value)
            if why is None:
                narrow = self.narrowing.narrowed(value, *packed(value, self.heads, kept))
                return self._picked(narrow, list(self._times.values()))
            self.notes.append(f"'{value.name}' stays whole, and kept heads are copied: {why}")
        return self._picked(value, [self._times.get(head, 0) for head in range(self.heads)])

    def _why_whole(self, value: ir.Value) -> str | None:
        """Return why all heads are computed in any case, as for a cache; None if they are not."""
        try:
            self.narrowing.narrowed(value, *packed(value, self.heads, tuple(self._times)))
        except InputReachedError as error:
            return str(error)
        is_read = self.narrowing.is_read_elsewhere(value, self.ends)
        return "something else reads all heads" if is_read else None

    def _picked(self, value: ir.Value, times: list[int]) -> ir.Value:
        """Take each head so many times: Split into heads, Concat of some of them."""
        if all(count == 1 for count in times):
            return value
        axis = 1 if len(dims_of(value)) == 4 else 2
        size = axis_size(value, axis) // len(times)
        place = value.producer()
        if place is None:
            raise NotNarrowedError(f"'{value.name}' is an input of the model")
        along = [ir.AttrInt64("axis", axis)]
        split = self.narrowing.node(
            place,
            "Split",
            [value],
            [*along, ir.AttrInt64("num_outputs", len(times))],
            like=[value] * len(times),
        )
        parts: list[ir.Value] = []
        for part, count in zip(split.outputs, times, strict=True):
            part.shape = with_size(value, axis, size)
            parts += [part] * count
        joined = self.narrowing.node(split, "Concat", parts, along, like=[value]).outputs[0]
        joined.shape = with_size(value, axis, size * len(parts))
        return joined
