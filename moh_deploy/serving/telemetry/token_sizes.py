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
from moh_deploy.package.token_mask import marks_padding, mask_input
from moh_deploy.system.npz import Array

Dims: TypeAlias = Mapping[str, int]
"""The size of each dynamic dimension of a run, always in the same order."""

_Axis: TypeAlias = int | DimExpr
_MOST_SIZES = 4096


@dataclass(slots=True)
class _Mix:
    """The runs of one mix of sizes that are not added up yet."""

    dims: Dims
    runs: int = 0
    valid: int = 0


class TokenCounter:
    """Counts the tokens of each layer in runs of any sizes; whoever calls holds a lock.

    Where the graph says how the axes of gates hang on the inputs' dimensions, tokens follow from
    these; where it does not, they are looked up: a run of new sizes has to be seen once.

    Args:
        inputs: Of the model.
        graph: With the shapes of its values, see `shapes_inferred`.
        gates: Of each layer, names of its gates and of what has the same batch and tokens.
        valid_tokens: The mask of valid tokens, [batch, tokens], see `token_mask`; None for all.
    """

    def __init__(
        self,
        inputs: Sequence[TensorInfo],
        graph: onnx.GraphProto,
        gates: Sequence[Sequence[str]],
        valid_tokens: str | None,
    ) -> None:
        self._mask = None if valid_tokens is None else mask_input(valid_tokens)
        self._marks_padding = valid_tokens is not None and marks_padding(valid_tokens)
        shapes = {one.name: tuple(map(_axis, one.shape)) for one in inputs}
        self._mask_shape = () if self._mask is None else shapes[self._mask]
        self._known = {
            axis.name for shape in shapes.values() for axis in shape if isinstance(axis, DimExpr)
        }
        values = _shapes(graph)
        self._ways = tuple(self._way([values.get(name, ()) for name in names]) for names in gates)
        self.has_unknown = None in self._ways
        self._seen: dict[tuple[int, ...], tuple[tuple[int, int], ...]] = {}
        # A run adds one to its mix of sizes: what the mixes come to is reckoned when asked for.
        self._open: dict[tuple[int, ...], _Mix] = {}
        self._runs, self._tokens = 0, [0] * len(self._ways)

    def knows(self, dims: Dims) -> bool:
        """Tell whether the tokens of a run of these sizes are known."""
        return not self.has_unknown or tuple(dims.values()) in self._seen

    def learn(self, dims: Dims, shapes: Sequence[tuple[int, ...]]) -> None:
        """Remember the shapes of all layers' gates, [B, S, H], in a run of these sizes."""
        if self.has_unknown:
            # Enough for every mix of sizes that is served; what is forgotten is seen again.
            if len(self._seen) >= _MOST_SIZES:
                self._close()
                self._seen.clear()
            self._seen[tuple(dims.values())] = tuple((shape[0], shape[1]) for shape in shapes)

    def add(self, dims: Dims, inputs: Mapping[str, Array]) -> None:
        """Count a run."""
        mix = self._open.get(tuple(dims.values())) or self._begun(dims)
        mix.runs += 1
        if self._mask is not None:
            mask = inputs[self._mask]
            marked = int(np.count_nonzero(mask))
            mix.valid += mask.size - marked if self._marks_padding else marked

    def totals(self) -> tuple[int, tuple[int, ...]]:
        """Return the runs, and the tokens of each layer in them, padding left out."""
        self._close()
        return self._runs, tuple(self._tokens)

    def _begun(self, dims: Dims) -> _Mix:
        if len(self._open) >= _MOST_SIZES:
            self._close()
        mix = self._open[tuple(dims.values())] = _Mix(dict(dims))
        return mix

    def _close(self) -> None:
        # What another package answered may have sizes that nobody saw: it waits until somebody has.
        waiting = {}
        for key, mix in self._open.items():
            if self.has_unknown and key not in self._seen:
                waiting[key] = mix
                continue
            self._runs += mix.runs
            mask_shape = tuple(_size(axis, mix.dims) for axis in self._mask_shape)
            for layer, way in enumerate(self._ways):
                shape = (
                    self._seen[key][layer]
                    if way is None
                    else (_size(way[0], mix.dims), _size(way[1], mix.dims))
                )
                is_masked = self._mask is not None and mask_shape == shape
                self._tokens[layer] += mix.valid if is_masked else mix.runs * shape[0] * shape[1]
        self._open = waiting

    def _way(self, shapes: Sequence[Sequence[_Axis | None]]) -> tuple[_Axis, _Axis] | None:
        """Return how batch and tokens follow from the inputs; None where no value tells."""
        for shape in shapes:
            known = [one for one in shape[:2] if one is not None and self._is_known(one)]
            if len(known) == 2:
                return known[0], known[1]
        return None

    def _is_known(self, axis: _Axis) -> bool:
        return isinstance(axis, int) or axis.name in self._known


def shapes_inferred(model: onnx.ModelProto) -> onnx.GraphProto:
    """Return a model's graph with the shapes of its values, as far as they can be inferred."""
    inferred = onnx.shape_inference.infer_shapes(model)
    return inferred.graph


def _shapes(graph: onnx.GraphProto) -> dict[str, list[_Axis | None]]:
    """Return the axes of each value that has a shape; None for an axis that is not known."""
    return {
        value.name: [
            one.dim_value if one.HasField("dim_value") else _read(one.dim_param)
            for one in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.value_info, *graph.output, *graph.input)
    }


def _axis(size: int | str) -> _Axis:
    """Return an axis of an input; a text that is no expression is a dimension of its own."""
    return size if isinstance(size, int) else _read(size) or DimExpr(size)


def _read(text: str) -> DimExpr | None:
    try:
        return DimExpr.parse(text, place="an axis")
    except ConfigError:
        return None


def _size(axis: _Axis, dims: Dims) -> int:
    return axis if isinstance(axis, int) else axis.evaluate(dims)
