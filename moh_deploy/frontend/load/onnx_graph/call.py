"""A node with the values of its inputs: what the function of an operator is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, cast

import onnx_ir as ir
import torch

from moh_deploy.errors import ExportError
from moh_deploy.frontend.load.onnx_graph.node import Node
from moh_deploy.frontend.load.onnx_graph.values import ExactNumber, Known, NodeValue, as_tensor

_T = TypeVar("_T")

Result: TypeAlias = NodeValue | Sequence[NodeValue | None]
NodeFunction: TypeAlias = "Callable[[NodeCall], Result]"
NumberFunction: TypeAlias = "Callable[[NodeCall], Result | None]"
"""Returns None where tensors have to compute it."""


@dataclass(frozen=True)
class NodeCall:
    """One node that is about to be computed.

    Attributes:
        node: The node.
        values: Of its inputs; None for one that is left out.
        opset: Version of the operators of the node's domain.
    """

    node: Node
    values: tuple[NodeValue | None, ...]
    opset: int

    def has(self, index: int) -> bool:
        """Whether an optional input is there."""
        return index < len(self.values) and self.values[index] is not None

    def value(self, index: int) -> NodeValue:
        """Return an input.

        Raises:
            ExportError: It is left out, though the operator needs it.
        """
        found = self.values[index] if index < len(self.values) else None
        if found is None:
            raise self.refused(f"has no input {index}, which the operator needs")
        return found

    def tensor(self, index: int) -> torch.Tensor:
        return as_tensor(self.value(index))

    def optional(self, index: int) -> torch.Tensor | None:
        return self.tensor(index) if self.has(index) else None

    def tensors(self) -> list[torch.Tensor]:
        """Return all inputs that are there."""
        return [as_tensor(value) for value in self.values if value is not None]

    def numbers(self, index: int, what: str) -> list[ExactNumber]:
        """Return the elements of an input that has to be known before the model runs.

        Args:
            what: The input in the words of ONNX, for messages: `axes`.

        Raises:
            ExportError: It is computed from values of the model's inputs.
        """
        value = self.value(index)
        if isinstance(value, Known):
            return value.flat()
        raise self.refused(
            f"takes its {what} from values that are known only when the model runs; sizes and"
            " constants alone can be traced"
        )

    def sizes(self, index: int, what: str) -> list[int]:
        """Return the elements of an input of sizes or axes; as `numbers`."""
        return cast(list[int], self.numbers(index, what))

    def attribute(self, name: str, default: _T) -> _T:
        """Return an attribute of the default's type."""
        return cast(_T, self.node.attributes.get(name, default))

    def required(self, name: str, kind: type[_T]) -> _T:
        """Return an attribute that the operator needs.

        Raises:
            ExportError: It is left out.
        """
        if name not in self.node.attributes:
            raise self.refused(f"has no attribute '{name}', which the operator needs")
        return cast(_T, self.node.attributes[name])

    def ints(self, name: str, default: Sequence[int]) -> list[int]:
        return list(cast(Sequence[int], self.node.attributes.get(name, default)))

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype that an attribute names.

        Raises:
            ExportError: Torch has none of it, or nothing here supports it.
        """
        number = self.required(name, int)
        found = TORCH_DTYPES.get(ir.DataType(number))
        if found is None:
            raise self.refused(f"makes {ir.DataType(number).name}, which is not supported")
        return found

    def axes(self, index: int) -> list[int] | None:
        """Return `axes`, an input in newer operator sets and an attribute in older ones."""
        if self.has(index):
            return [int(cast(int, axis)) for axis in self.numbers(index, "axes")]
        given = self.ints("axes", ())
        return given or None

    def refused(self, why: str) -> ExportError:
        """Return the error for a form of an operator that cannot be read."""
        return ExportError(f"{self.node.place} {why}.")


TORCH_DTYPES: dict[ir.DataType, torch.dtype] = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}
