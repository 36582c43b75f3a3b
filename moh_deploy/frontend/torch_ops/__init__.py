"""The ops of `moh_deploy.ops` as torch operators, so that a rewritten program can be run, checked
and exported.

Importing this package registers them: `MoHTokenConv` is `torch.ops.moh.token_conv`. Its arguments
are the inputs and the attributes of the op's `OpSpec`, in that order; shapes of fake tensors and
the translation to an ONNX node follow from it, too.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import dropwhile
from typing import cast

import onnx_ir as ir
import onnxscript
import torch
from torch import Tensor
from torch._ops import OpOverload

from moh_deploy.frontend.fx.arrays import to_numpy, to_torch
from moh_deploy.frontend.torch_ops.bodies import BODIES
from moh_deploy.ops import OPS, OpSpec, TensorType
from moh_deploy.ops.op_names import KERNEL_DOMAIN
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES, Attributes, AttributeSpec, AttributeValue

Value = onnxscript.tensor.Tensor | ir.Value

_TYPES: Mapping[str, type] = {"int": int, "float": float, "string": str}
_TORCH_TYPES: Mapping[type, str] = {int: "int", float: "float", str: "str", bool: "bool"}


def _type(attribute: AttributeSpec) -> type:
    return bool if attribute.is_flag else _TYPES[attribute.type]


def _attributes(spec: OpSpec, arguments: Sequence[object]) -> Attributes:
    """All attributes by name, from the arguments behind the inputs; flags are integers in ONNX."""
    given = zip(spec.attributes, arguments[len(spec.inputs) :], strict=True)
    values = {attribute.name: cast(AttributeValue, value) for attribute, value in given}
    return spec.complete({k: int(v) if isinstance(v, bool) else v for k, v in values.items()})


def run_reference(spec: OpSpec, *arguments: object) -> Tensor:
    """Compute an op by its float64 reference, rounded to the dtype of its inputs."""
    tensors = cast(Sequence[Tensor | None], arguments[: len(spec.inputs)])
    arrays = [None if tensor is None else to_numpy(tensor) for tensor in tensors]
    (output,) = spec.reference(arrays, _attributes(spec, arguments))
    return to_torch(output).to(_like_output(spec, tensors).dtype)


def _like_output(spec: OpSpec, tensors: Sequence[Tensor | None]) -> Tensor:
    """The first input that has the dtype of the output."""
    given = zip(spec.inputs, tensors, strict=True)
    return next(x for op_input, x in given if x is not None and op_input.constraint == "T")


def _fake(spec: OpSpec, *arguments: object) -> Tensor:
    """An output without values: its shape is what the op's shape rule says."""
    tensors = cast(Sequence[Tensor | None], arguments[: len(spec.inputs)])
    # Symbolic sizes go by their expressions, as the names of dynamic sizes do in ONNX.
    symbols = {
        str(size): size
        for tensor in tensors
        if tensor is not None
        for size in tensor.shape
        if not isinstance(size, int)
    }
    types: list[TensorType | None] = []
    for tensor in tensors:
        if tensor is None:
            types.append(None)
            continue
        # Any floating-point dtype will do: the proof of a router computes in float64.
        is_float = tensor.is_floating_point()
        dtype = "float32" if is_float else str(tensor.dtype).removeprefix("torch.")
        sizes = (size if isinstance(size, int) else str(size) for size in tensor.shape)
        types.append(TensorType(dtype, tuple(sizes)))
    (output,) = spec.shape_rule(types, _attributes(spec, arguments))
    shape = [symbols[dim] if isinstance(dim, str) else dim for dim in output.shape]
    return _like_output(spec, tensors).new_empty(cast(list[int], shape))


def _translation(spec: OpSpec) -> Callable[..., Value]:
    """The function that torch.onnx calls, with an argument for each of the torch operator."""

    def translate(*arguments: object) -> Value:
        absent_last = reversed(arguments[: len(spec.inputs)])
        inputs = list(dropwhile(lambda value: value is None, absent_last))[::-1]
        node = getattr(onnxscript.values.Opset(spec.domain, spec.version), spec.name)
        return cast(Value, node(*inputs, **_attributes(spec, arguments), **PLUGIN_ATTRIBUTES))

    # torch.onnx reads names and types of arguments to tell attributes from inputs.
    inputs = {given.name: Value | None if given.optional else Value for given in spec.inputs}
    types = {**inputs, **{given.name: _type(given) for given in spec.attributes}}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    translate.__annotations__ = {**types, "return": Value}
    parameters = [inspect.Parameter(name, kind) for name in types]
    translate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return translate


def _register(spec: OpSpec) -> OpOverload:
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", spec.name.removeprefix("MoH")).lower()
    body = BODIES.get(spec.name, partial(run_reference, spec))
    # (Tensor X, Tensor? bias, int height, bool gated) -> Tensor
    arguments = [f"Tensor{'?' if given.optional else ''} {given.name}" for given in spec.inputs]
    arguments += [f"{_TORCH_TYPES[_type(given)]} {given.name}" for given in spec.attributes]
    schema = f"({', '.join(arguments)}) -> Tensor"
    operator = torch.library.custom_op(
        f"{KERNEL_DOMAIN}::{name}", body, mutates_args=(), schema=schema
    )
    operator.register_fake(partial(_fake, spec))
    return cast(OpOverload, getattr(torch.ops.moh, name).default)


OPERATORS: Mapping[str, OpOverload] = {spec.name: _register(spec) for spec in OPS.values()}
"""By name of the op."""


def _sort(
    values: Value, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Value:
    """Translate a stable sort, which torch.onnx does not: TopK takes the first of equal numbers."""
    opset = onnxscript.values.Opset("", 18)
    size = opset.Shape(values, start=dim, end=dim + 1 or None)
    return cast(Value, opset.TopK(values, size, axis=dim, largest=int(descending), sorted=1))


TRANSLATIONS: dict[Callable[..., object], Callable[..., object]] = {
    **{OPERATORS[spec.name]: _translation(spec) for spec in OPS.values()},
    torch.ops.aten.sort.stable: _sort,
}
