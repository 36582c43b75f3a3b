"""Choose the elements of a run's values that are compared: those of valid tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import sympy
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from moh_deploy.frontend.fx.arrays import dtype_name
from moh_deploy.frontend.fx.axes import Size
from moh_deploy.frontend.fx.containers import output_nodes
from moh_deploy.frontend.fx.graph import is_tensor, shape
from moh_deploy.frontend.limits import dynamic_axes
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.package import TensorInfo
from moh_deploy.validate.reference.valid_tokens import ValidTokens, output_view, over_axes


@dataclass(frozen=True)
class ValidElements:
    """The elements that count of the values that one run of a program makes."""

    outputs: tuple[TensorInfo, ...] = ()  # the program's outputs, as a package would declare them
    # What the axes of inputs are called, to their sizes in the program.
    sizes: Mapping[str, Size] = field(default_factory=dict)
    tokens: ValidTokens | None = None  # the tokens that are valid; None if all are

    @classmethod
    def of(
        cls, program: ExportedProgram, inputs: Sequence[ModelInput], outputs: Sequence[str]
    ) -> ValidElements:
        """Read how the axes of a program are called; every token counts so far."""
        sizes = {
            str(expr): size
            for _, _, expr, size in dynamic_axes(program, inputs)
            if not size.is_Integer
        }
        names = {size: name for name, size in sizes.items()}
        specs = []
        for name, node in zip(outputs, output_nodes(program), strict=True):
            dims = (int(n) if n.is_Integer else names.get(n, str(n)) for n in shape(node))
            specs.append(TensorInfo(name, dtype_name(node.meta["val"].dtype), tuple(dims)))
        return cls(tuple(specs), sizes)

    def where(self, tokens: ValidTokens | None) -> ValidElements:
        """Return the elements of valid tokens of a run."""
        return replace(self, tokens=tokens)

    def of_output(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return which elements of an output count, by the rules of `verify`: bool, its shape."""
        if self.tokens is None:
            return torch.ones(value.shape, dtype=torch.bool)
        view = output_view(self.tokens, self.outputs, {name: tuple(value.shape)})
        return torch.from_numpy(np.array(view.places(name, value.shape)))

    def of_node(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        """Return which elements of an inner value count: bool, its shape.

        All of them where it is not certain which of its axes are the mask's: comparing too much is
        safe.
        """
        every = torch.ones(value.shape, dtype=torch.bool)
        if self.tokens is None:
            return every
        # The sizes of the mask's axes in the program.
        mask = self.tokens.mask
        batch, tokens = (
            self.sizes.get(str(dim), sympy.sympify(size))
            for dim, size in zip(self.tokens.dims or mask.shape, mask.shape, strict=True)
        )

        def places(wanted: Size | None) -> list[int]:
            found = shape(node) if is_tensor(node) else ()
            return [axis for axis, size in enumerate(found) if size == wanted]

        newest = places(self.sizes.get(self.tokens.new_tokens or ""))
        if len(newest) == 1:
            # The last tokens of the mask, those of the call.
            tokens = shape(node)[newest[0]]
            mask = self.tokens.newest(value.shape[newest[0]]).mask
        both = [*places(batch), *places(tokens)]
        # [batch, tokens, ...], in any order, or tokens of all samples in a row.
        if len(both) == 2 and both[0] != both[1]:
            mask = mask if both[0] < both[1] else mask.T
        else:
            both = places(sympy.Mul(batch, tokens))
            mask = mask.reshape(-1)
        fits = len(both) == mask.ndim and tuple(value.shape[axis] for axis in sorted(both))
        if fits != mask.shape:
            return every
        return torch.from_numpy(np.array(over_axes(mask, sorted(both), value.shape)))


EVERYTHING: ValidElements = ValidElements()
