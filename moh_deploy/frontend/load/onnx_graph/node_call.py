"""A node with the values of its inputs: what the function of an operator is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias, TypeVar, cast

import numpy as np
import onnx_ir as ir
import torch

from moh_deploy.errors import ExportError
from moh_deploy.frontend.load.onnx_graph.node import Node
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain

# What travels between the nodes of a graph: tensors, and tensors whose elements are numbers.
#
# ONNX computes sizes with tensors: `Shape`, `Gather`, `Mul`, `Concat`, then `Reshape` with the
# result. While torch.export traces, a size is a Python number or a symbol, and has to stay one, or
# its dimension would be fixed. So what `Shape` makes, and what is computed from it, is `Known`.

# Or a symbol of torch, which its own type hints call a number, too; see `is_symbol`.
ExactNumber: TypeAlias = int | float | bool


@dataclass(frozen=True)
class Known:
    """A small tensor whose elements are known as Python numbers, or as symbols."""

    numbers: np.ndarray  # of numpy's dtype `object`, in the tensor's shape
    dtype: torch.dtype  # of the tensor
    stored: torch.Tensor | None = None  # the tensor itself, for a constant of the model

    @classmethod
    def of(cls, numbers: Sequence[ExactNumber], dtype: torch.dtype = torch.int64) -> Known:
        """Return a tensor of one axis."""
        return cls(objects(numbers), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def flat(self) -> list[ExactNumber]:
        """Return all numbers in order."""
        return cast(list[ExactNumber], list(self.numbers.flat))

    def tensor(self) -> torch.Tensor:
        """Return the tensor that it stands for."""
        if self.stored is not None:
            return self.stored
        numbers = self.flat()
        if not any(map(is_symbol, numbers)):
            return torch.tensor(numbers, dtype=self.dtype).reshape(self.shape)
        scalars = [torch.scalar_tensor(number, dtype=self.dtype) for number in numbers]
        return torch.stack(scalars).reshape(self.shape) if self.shape else scalars[0]


NodeValue: TypeAlias = torch.Tensor | Known

# Larger constants are tensors alone: no shape has so many axes, and no list of indices of a graph
# that was written out is longer where it matters.
MOST_NUMBERS = 64


def objects(numbers: Iterable[ExactNumber]) -> np.ndarray:
    """Return numbers, symbols among them, as an array of one axis that leaves them as they are."""
    listed = list(numbers)
    array = np.empty(len(listed), dtype=object)
    for index, number in enumerate(listed):
        array[index] = number
    return array


def is_symbol(number: object) -> bool:
    """Tell a size or a sum of sizes that is known only when the model runs."""
    return isinstance(number, (torch.SymInt, torch.SymFloat, torch.SymBool))


def as_tensor(value: NodeValue) -> torch.Tensor:
    return value.tensor() if isinstance(value, Known) else value


_T = TypeVar("_T")

Result: TypeAlias = NodeValue | Sequence[NodeValue | None]
NodeFunction: TypeAlias = "Callable[[NodeCall], Result]"
# Returns None where tensors have to compute it.
NumberFunction: TypeAlias = "Callable[[NodeCall], Result | None]"


@dataclass(frozen=True)
class NodeCall:
    """One node that is about to be computed."""

    node: Node  # the node
    values: tuple[NodeValue | None, ...]  # of its inputs; None for one that is left out
    opset: int  # version of the operators of the node's domain

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


# The table from operator to function, which each file of this folder fills.


# The domain of ONNX Runtime's own operators.
MICROSOFT = "com.microsoft"

_TENSORS: dict[tuple[str, str], NodeFunction] = {}
_NUMBERS: dict[tuple[str, str], NumberFunction] = {}

# By domain and name.
ONNX_OPERATORS = MappingProxyType(_TENSORS)

# What operators do where all their inputs are `Known`: sizes stay numbers.
ON_NUMBERS = MappingProxyType(_NUMBERS)


def operator(*names: str, domain: str = "") -> Callable[[NodeFunction], NodeFunction]:
    """Register a function for operators of a domain."""

    def register(function: NodeFunction) -> NodeFunction:
        for name in names:
            assert (domain, name) not in _TENSORS, f"{domain}.{name} is registered twice"
            _TENSORS[domain, name] = function
        return function

    return register


def on_numbers(*names: str) -> Callable[[NumberFunction], NumberFunction]:
    """Register what standard operators do with numbers."""

    def register(function: NumberFunction) -> NumberFunction:
        _NUMBERS.update({("", name): function for name in names})
        return function

    return register


def known_domain(domain: str) -> str:
    """Return the domain under which the table has a node's operator: bodies share one."""
    return KERNEL_DOMAIN if base_domain(domain) is not None else domain
