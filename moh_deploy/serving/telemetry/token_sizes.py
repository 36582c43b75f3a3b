"""Count the tokens that each layer routes, from the sizes of the inputs alone.

So tokens are counted in every run, and gates are fetched in few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ConfigError
from moh_deploy.package import TensorInfo
from moh_deploy.system.npz import Array

InputShapes: TypeAlias = tuple[tuple[int, ...], ...]
"""The shapes of all inputs."""

_Way: TypeAlias = tuple[int | DimExpr, int | DimExpr]
_MOST_SIZES = 4096


@dataclass(frozen=True)
class _Axis:
    """An axis of an input that tells a dynamic dimension."""

    input: int
    axis: int
    expression: DimExpr


class TokenCounter:
    """Counts the tokens of each layer in runs of any sizes; whoever calls holds a lock.

    Where the graph says how the axes of gates hang on the inputs' dimensions, tokens follow from
    these; where it does not, they are looked up: a run of new sizes has to be seen once.

    Args:
        inputs: Of the model.
        graph: With the shapes of its values, see `shapes_inferred`.
        gates: Of each layer, names of its gates and of what has the same batch and tokens.
        valid_tokens: The input that is 0 for padding, [batch, tokens]; None where there is none.
    """

    def __init__(
        self,
        inputs: Sequence[TensorInfo],
        graph: onnx.GraphProto,
        gates: Sequence[Sequence[str]],
        valid_tokens: str | None,
    ) -> None:
        self._names = tuple(one.name for one in inputs)
        self._mask = None if valid_tokens is None else self._names.index(valid_tokens)
        self._axes = _axes(inputs)
        dims = _dims(graph)
        self._ways = tuple(self._way([dims.get(name, ()) for name in names]) for names in gates)
        self.has_unknown = None in self._ways
        self._seen: dict[InputShapes, tuple[tuple[int, int], ...]] = {}
        # Runs and valid tokens of each mix of sizes: what these come to is reckoned when asked for.
        self._open: dict[InputShapes, tuple[int, int]] = {}
        self._runs, self._tokens = 0, [0] * len(self._ways)

    def knows(self, inputs: Mapping[str, Array]) -> bool:
        """Tell whether the tokens of a run with these inputs are known."""
        return not self.has_unknown or self._sizes(inputs) in self._seen

    def learn(self, inputs: Mapping[str, Array], shapes: Sequence[tuple[int, ...]]) -> None:
        """Remember the shapes of all layers' gates, [B, S, H], in a run of these sizes."""
        if self.has_unknown:
            # Enough for every mix of sizes that is served; what is forgotten is seen again.
            if len(self._seen) >= _MOST_SIZES:
                self._close()
                self._seen.clear()
            self._seen[self._sizes(inputs)] = tuple((shape[0], shape[1]) for shape in shapes)

    def add(self, inputs: Mapping[str, Array]) -> None:
        """Count a run."""
        sizes = self._sizes(inputs)
        runs, valid = self._open.get(sizes, (0, 0))
        if self._mask is not None:
            valid += int(np.count_nonzero(inputs[self._names[self._mask]]))
        self._open[sizes] = runs + 1, valid
        if len(self._open) > _MOST_SIZES:
            self._close()

    def totals(self) -> tuple[int, tuple[int, ...]]:
        """Return the runs, and the tokens of each layer in them, padding left out."""
        self._close()
        return self._runs, tuple(self._tokens)

    def _sizes(self, inputs: Mapping[str, Array]) -> InputShapes:
        return tuple([inputs[name].shape for name in self._names])

    def _close(self) -> None:
        # What another package answered may have sizes that nobody saw: it waits until somebody has.
        waiting = {
            sizes: one
            for sizes, one in self._open.items()
            if self.has_unknown and sizes not in self._seen
        }
        for sizes, (runs, valid) in self._open.items():
            if sizes in waiting:
                continue
            self._runs += runs
            for layer, way in enumerate(self._ways):
                shape = self._seen[sizes][layer] if way is None else self._shape(way, sizes)
                is_masked = self._mask is not None and sizes[self._mask] == shape
                self._tokens[layer] += valid if is_masked else runs * shape[0] * shape[1]
        self._open = waiting

    def _way(self, values: Sequence[Sequence[int | DimExpr | None]]) -> _Way | None:
        """Return how batch and tokens follow from the inputs; None where no value tells."""
        for dims in values:
            known = [one for one in dims[:2] if one is not None and self._is_known(one)]
            if len(known) == 2:
                return known[0], known[1]
        return None

    def _is_known(self, dim: int | DimExpr) -> bool:
        return isinstance(dim, int) or dim.name in self._axes

    def _shape(self, way: _Way, sizes: InputShapes) -> tuple[int, int]:
        return self._size(way[0], sizes), self._size(way[1], sizes)

    def _size(self, dim: int | DimExpr, sizes: InputShapes) -> int:
        if isinstance(dim, int):
            return dim
        axis = self._axes[dim.name]
        # Inputs were checked: there is a whole number.
        size = axis.expression.solve(sizes[axis.input][axis.axis]) or 0
        return dim.evaluate({dim.name: size})


def shapes_inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """Return a model's graph with the shapes of its values, as far as they can be inferred."""
    inferred = onnx.shape_inference.infer_shapes(model)
    return inferred.graph


def _axes(inputs: Sequence[TensorInfo]) -> dict[str, _Axis]:
    """Return for each dynamic dimension the first axis that tells it."""
    found: dict[str, _Axis] = {}
    for index, one in enumerate(inputs):
        for axis, size in enumerate(one.shape):
            expression = _read(size) if isinstance(size, str) else None
            if expression is not None:
                found.setdefault(expression.name, _Axis(index, axis, expression))
    return found


def _dims(graph: onnx.GraphProto) -> dict[str, list[int | DimExpr | None]]:
    """Return the axes of each value that has a shape; None for an axis that is not known."""
    return {
        value.name: [
            one.dim_value if one.HasField("dim_value") else _read(one.dim_param)
            for one in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.value_info, *graph.output, *graph.input)
    }


def _read(text: str) -> DimExpr | None:
    try:
        return DimExpr.parse(text, place="an axis")
    except ConfigError:
        return None
