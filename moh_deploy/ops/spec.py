"""Specify a custom op: signature, meaning, shape rule and ONNX function, in one value.

Each op fills one `OpSpec` and registers it when `moh_deploy.ops` is imported. Everything that
implements, exports, checks or documents an op reads it from `OPS`: its meaning is written once.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx

from moh_deploy.errors import ExportError
from moh_deploy.ops.op_names import KERNEL_DOMAIN

VERSION = 1
FLOAT_TYPES = ("float32", "float16", "bfloat16")
LENGTH_TYPES = ("int64",)
PACKED_TYPES = ("uint8",)
FLAG = (0, 1)

OpDim = int | str | None
"""A fixed size, a named dynamic size, or an unknown one."""

AttributeValue = int | float | str
Attributes = Mapping[str, AttributeValue]
Arrays = Sequence[np.ndarray | None]
"""Inputs or outputs of one run, in the op's order; None stands for an absent optional input."""


@dataclass(frozen=True)
class TensorType:
    """Dtype (`float32`, `bfloat16`, `bool`, ...) and shape of a value."""

    dtype: str
    shape: tuple[OpDim, ...]


TensorTypes = Sequence[TensorType | None]
"""Types of a node's inputs, in the op's order; None stands for an absent optional input."""


@dataclass(frozen=True)
class OpInput:
    """One input of an op."""

    name: str
    doc: str  # shape and meaning
    optional: bool = field(default=False, kw_only=True)
    types: tuple[str, ...] = field(default=FLOAT_TYPES, kw_only=True)  # the dtypes it may have
    # Name of the type constraint: inputs that share it have the same dtype.
    constraint: str = field(default="T", kw_only=True)


@dataclass(frozen=True)
class OutputSpec:
    """One output of an op; its dtype is that of the inputs of constraint T."""

    name: str
    doc: str


@dataclass(frozen=True)
class AttributeSpec:
    """One attribute of an op.

    Attributes:
        default: Value where the caller gives none; None makes the attribute required.
        choices: The values that it may have; empty for any.
        at_least, above: The least number, and one that a number has to exceed.
        odd: An even number is refused.
    """

    name: str
    doc: str
    type: Literal["int", "float", "string"] = "int"
    default: AttributeValue | None = None
    choices: tuple[AttributeValue, ...] = ()
    at_least: int | None = None
    above: float | None = None
    odd: bool = False

    @property
    def is_flag(self) -> bool:
        """Tell whether it is true or false; ONNX has 1 and 0 for that."""
        return self.choices == FLAG

    def expected_instead(self, value: AttributeValue) -> str | None:
        """Return what a value of the right type should have been; None where it is fine."""
        if self.choices and value not in self.choices:
            return " or ".join(map(str, self.choices))
        if isinstance(value, str):
            return None
        if self.at_least is not None and value < self.at_least:
            return f"at least {self.at_least}" if self.at_least else "0 or more"
        if self.above is not None and not value > self.above:
            return f"more than {self.above:g}"
        if self.odd and value % 2 == 0:
            return "an odd number, so that the window has a centre"
        return None


class BodyVariant:
    """Selects one ONNX function body, by whatever a function cannot branch on; a dataclass."""

    def key(self) -> str:
        """Return what tells it from all others of its op."""
        return repr(self)


def float64(array: np.ndarray | None) -> np.ndarray:
    """Return a required input of a reference in float64."""
    assert array is not None, "a required input is absent"
    return array.astype(np.float64)


@dataclass(frozen=True)
class StoredWeight:
    """The form in which an op stores its input `W` in few bits."""

    precision: str  # what a package with such weights is in
    # Returns, for the op's attributes, steps of a function that make of `W` and `scales` first
    # `digits`, uint8, then `matrix`, [K, N]; and the largest of the digits.
    unpack: Callable[[Attributes], tuple[list[str], int]]
    plain: str = "MatMul"  # the op that it is with a weight in floats


@dataclass(frozen=True)
class OpSpec:
    """One definition of a custom op, shared by every implementation."""

    name: str
    inputs: tuple[OpInput, ...]
    outputs: tuple[OutputSpec, ...]
    attributes: tuple[AttributeSpec, ...]
    # float64 outputs of one run; written for reading, not for speed.
    reference: Callable[[Arrays, Attributes], tuple[np.ndarray, ...]]
    # Types of the outputs, with attributes of `complete`; raises ExportError on what the op does
    # not define.
    shape_rule: Callable[[TensorTypes, Attributes], tuple[TensorType, ...]]
    variant: Callable[[TensorTypes, Attributes], BodyVariant]  # which function body a node needs
    body: Callable[..., onnx.FunctionProto]  # the function body of a variant, in standard ONNX ops
    doc: str
    # Which elements of the outputs of one run mean something, as one boolean array for each output;
    # None: all do. Do not depend on the others.
    specified: Callable[[Arrays, Attributes], tuple[np.ndarray, ...]] | None = None
    weight: StoredWeight | None = None  # how it is stored, if it has few bits
    domain: str = KERNEL_DOMAIN
    version: int = VERSION

    def function(
        self, inputs: TensorTypes, attributes: Attributes, *, opset: int
    ) -> onnx.FunctionProto:
        """Return the function body that fits a node."""
        return self.body(self.variant(inputs, attributes), opset=opset)

    def complete(self, given: Attributes) -> Attributes:
        """Return every attribute of the op: the given value, else the default.

        Raises:
            ExportError: An attribute is unknown, missing, of the wrong type, or beyond its limits.
        """
        known = {spec.name: spec for spec in self.attributes}
        for name in given:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise ExportError(
                    f"{self.name} has no attribute '{name}'; it has: {', '.join(known)}.",
                    hint=f"Did you mean '{close[0]}'?" if close else None,
                )
        return {name: self._value(spec, given) for name, spec in known.items()}

    def _value(self, spec: AttributeSpec, given: Attributes) -> AttributeValue:
        value = given.get(spec.name, spec.default)
        if value is None:
            raise ExportError(f"{self.name} needs the attribute '{spec.name}' ({spec.type}).")
        accepted = {"int": (int,), "float": (int, float), "string": (str,)}[spec.type]
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise ExportError(
                f"{self.name} attribute '{spec.name}' has type {type(value).__name__}; "
                f"expected {spec.type}."
            )
        expected = spec.expected_instead(value)
        if expected is not None:
            shown = repr(value) if isinstance(value, str) else value
            raise ExportError(f"{self.name}: {spec.name} is {shown}; expected {expected}.")
        return float(value) if spec.type == "float" else value


PLUGIN_ATTRIBUTES: Mapping[str, str] = {
    "plugin_version": str(VERSION),
    "plugin_namespace": KERNEL_DOMAIN,
}
"""On every node besides the op's own attributes: TensorRT's parser picks the plugin by them."""


# Checks that the shape rules share.
#
# A named or unknown size is compared with nothing: only a certain conflict is refused.


def required(op_name: str, name: str, value: TensorType | None) -> TensorType:
    """Return an input that must be there."""
    if value is None:
        raise ExportError(f"{op_name}: input '{name}' is absent; it is required.")
    return value


def check_tensor(
    op_name: str, name: str, value: TensorType, dtypes: tuple[str, ...], ranks: tuple[int, ...]
) -> None:
    """Refuse a dtype and a rank that the op does not take."""
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
    """Refuse two fixed sizes that differ."""
    if isinstance(got, int) and isinstance(expected, int) and got != expected:
        raise ExportError(f"{op_name}: {what} is {got}; expected {expected}.")


def known(*dims: OpDim) -> OpDim:
    """Return the most definite of several names for one size: a number, else a name, else None."""
    ranked = sorted(dims, key=lambda dim: 0 if isinstance(dim, int) else 1 if dim else 2)
    return ranked[0]


def show(value: TensorType) -> str:
    """Format a shape for a message: `[batch, 7, ?]`."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in value.shape) + "]"


# Function bodies as text: read by people, parsed by onnx.parser.

MIN_OPSET = 18


def parsed_function(
    signature: str, steps: Iterable[str], *, opset: int, domain: str | None = None
) -> onnx.FunctionProto:
    """Return a function body.

    Args:
        signature: Name of the op, its attributes, inputs and outputs: `Op <size> (X, W) => (Y)`.
        steps: In the ONNX text format. Each makes the names that later ones read.
        opset: Version of the standard ops that the model imports.
        domain: One whose ops, of version 1, the steps use besides.

    Raises:
        ExportError: The opset is older than MIN_OPSET, the first in which ReduceMax takes its axes
            as an input and Split takes num_outputs.
    """
    if opset < MIN_OPSET:
        op_name = signature.split()[0]
        raise ExportError(
            f"{op_name}: function body for opset {opset}; expected {MIN_OPSET} or later.",
            hint=f"Export with opset {MIN_OPSET} or later.",
        )
    imports = f'"" : {opset}' + (f', "{domain}" : 1' if domain else "")
    head = f'<domain: "{KERNEL_DOMAIN}", opset_import: [{imports}]> {signature}'
    return onnx.parser.parse_function(f"{head} {{ {' '.join(steps)} }}")
