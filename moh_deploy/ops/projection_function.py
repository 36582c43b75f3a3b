"""The projections as ONNX functions in standard ops: every row, open or not, in one product."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from moh_deploy.ops import op_names
from moh_deploy.ops.function_text import parsed_function
from moh_deploy.ops.spec import Attributes, TensorTypes

_OUTPUTS = {op_names.QUERY_PROJECTION: "Q", op_names.OUTPUT_PROJECTION: "Y"}


@dataclass(frozen=True)
class ProjectionVariant:
    """Selects one body of a projection.

    Attributes:
        half: Inputs are float16 or bfloat16: products and sums are in float32 all the same.
        biased: A bias is added.
    """

    half: bool
    biased: bool

    def key(self) -> str:
        """Return the variant's name, such as `half_bias`."""
        return ("half" if self.half else "full") + ("_bias" if self.biased else "")


def variant_of(inputs: TensorTypes, attributes: Attributes) -> ProjectionVariant:
    """Return the variant that a node needs; the node must satisfy the shape rule."""
    # Gates decide nothing here: what a closed head gets is unspecified, and may as well be
    # computed.
    x, _, _, bias = (*inputs, None)[:4]
    assert x is not None, "a required input is absent"
    return ProjectionVariant(half=x.dtype != "float32", biased=bias is not None)


def function_body(op_name: str, variant: ProjectionVariant, *, opset: int) -> onnx.FunctionProto:
    """Build the body of a projection for one variant.

    Args:
        op_name: MoHQueryProjection or MoHOutputProjection.
        opset: Version of the standard ops that the model imports, 18 or later.

    Raises:
        ExportError: The opset is older than 18.
    """
    output = _OUTPUTS[op_name]
    # The gates are a parameter, since nodes give them, and read by kernels alone.
    inputs = "X, W, gates" + (", bias" if variant.biased else "")
    steps = _half(variant, output) if variant.half else _full(variant, output)
    signature = f"{op_name} <num_heads> ({inputs}) => ({output})"
    return parsed_function(signature, [steps], opset=opset)


def _full(variant: ProjectionVariant, output: str) -> str:
    """No casts: a runtime sees the MatMul and Add that it fuses and prepares best."""
    if not variant.biased:
        return f"{output} = MatMul (X, W)"
    return f"product = MatMul (X, W) {output} = Add (product, bias)"


def _half(variant: ProjectionVariant, output: str) -> str:
    # Products and sums in float32, as kernels accumulate, and rounded once at the end.
    sum_ = (
        "wide_bias = Cast <to = 1> (bias) sum = Add (product, wide_bias)"
        if variant.biased
        else "sum = Identity (product)"
    )
    return f"""
        wide_X = Cast <to = 1> (X)
        wide_W = Cast <to = 1> (W)
        product = MatMul (wide_X, wide_W)
        {sum_}
        {output} = CastLike (sum, X)
    """
