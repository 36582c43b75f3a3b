"""Count the tokens that each layer routes, from the sizes of the inputs alone.

So tokens are counted in every run, and gates are fetched in few.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx

from moh_deploy.config.dims import DimExpr
from moh_deploy.package import TensorInfo
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
    """Counts the tokens of each layer in runs of any sizes; all but `knows` wants a lock held.

    Where the graph says how the axes of gates hang on the inputs' dimensions, tokens follow from
    these; where it does not, they are looked up: a run of new sizes has to be seen once.

    Args:
        inputs: Of the model.
        graph: With the shapes of its values, as far as they can be inferred.
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
        shapes = {info.name: _axes(info.shape) for info in inputs}
        self._mask = valid_tokens
        self._mask_shape = () if valid_tokens is None else shapes[valid_tokens]
        given = [
            axis.name for axes in shapes.values() for axis in axes if not isinstance(axis, int)
        ]
        values = {
            value.name: _axes(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param
                for dim in value.type.tensor_type.shape.dim
            )
            for value in (*graph.value_info, *graph.output, *graph.input)
        }

        def shape_of(names: Sequence[str]) -> tuple[_Axis, ...] | None:
            for shape in (values.get(name, ())[:2] for name in names):
                known = [axis for axis in shape if isinstance(axis, int) or axis.name in given]
                if len(known) == 2:
                    return shape
            return None

        # Batch and tokens of each layer; None where no value tells them.
        self._shapes = tuple(map(shape_of, gates))
        self._has_unknown = None in self._shapes
        self._seen: dict[tuple[int, ...], tuple[tuple[int, ...], ...]] = {}
        # A run adds one to its mix of sizes: what the mixes come to is reckoned when asked for.
        self._open: dict[tuple[int, ...], _Mix] = {}
        self._tokens = [0] * len(self._shapes)

    def knows(self, dims: Dims) -> bool:
        """Tell whether the tokens of a run of these sizes are known."""
        return not self._has_unknown or tuple(dims.values()) in self._seen

    def learn(self, dims: Dims, shapes: Sequence[tuple[int, ...]]) -> None:
        """Remember the shapes of all layers' gates, [B, S, H], in a run of these sizes."""
        if self._has_unknown:
            # Enough for every mix of sizes that is served; what is forgotten is seen again.
            if len(self._seen) >= _MOST_SIZES:
                self._close()
                self._seen.clear()
            self._seen[tuple(dims.values())] = tuple(shape[:2] for shape in shapes)

    def add(self, dims: Dims, inputs: Mapping[str, Array]) -> None:
        """Count a run."""
        key = tuple(dims.values())
        mix = self._open.get(key)
        if mix is None:
            if len(self._open) >= _MOST_SIZES:
                self._close()
            mix = self._open[key] = _Mix(dict(dims))
        mix.runs += 1
        if self._mask is not None:
            mix.valid += int(np.count_nonzero(inputs[self._mask]))

    def totals(self) -> tuple[int, ...]:
        """Return the tokens of each layer in all runs, padding left out."""
        self._close()
        return tuple(self._tokens)

    def _close(self) -> None:
        # Sizes that another package answered may be seen later: such a mix waits.
        waiting = {}
        for key, mix in self._open.items():
            if self._has_unknown and key not in self._seen:
                waiting[key] = mix
                continue
            mask_shape = _sizes(self._mask_shape, mix.dims)
            for layer, axes in enumerate(self._shapes):
                shape = self._seen[key][layer] if axes is None else _sizes(axes, mix.dims)
                is_masked = self._mask is not None and mask_shape == shape
                self._tokens[layer] += mix.valid if is_masked else mix.runs * shape[0] * shape[1]
        self._open = waiting


def _axes(shape: Iterable[int | str]) -> tuple[_Axis, ...]:
    return tuple(dim if isinstance(dim, int) else DimExpr.of_input(dim) for dim in shape)


def _sizes(axes: Iterable[_Axis], dims: Dims) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else axis.evaluate(dims) for axis in axes)
