"""MoHRouter as an ONNX function in standard ops: what runs wherever no kernel is installed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx

from moh_deploy.errors import ExportError
from moh_deploy.ops.function_text import parsed_function
from moh_deploy.ops.spec import Attributes, TensorTypes

SharedGates = Literal["none", "ones", "softmax"]

_INPUTS = ("routed_logits", "shared_logits", "stage_logits")


@dataclass(frozen=True)
class RouterVariant:
    """Selects one body of MoHRouter.

    Attributes:
        routed: Gates of the routed heads: absent, weighted by their probability, or 0 and 1.
        shared: Gates of the shared heads: absent, all 1, or a softmax of logits.
        staged: A softmax of two logits weighs shared against routed gates.
    """

    routed: Literal["none", "weighted", "mask"]
    shared: SharedGates
    staged: bool

    def key(self) -> str:
        """Return the variant's name, such as `weighted_softmax_staged`."""
        return f"{self.routed}_{self.shared}" + ("_staged" if self.staged else "")

    def inputs(self) -> tuple[str, ...]:
        """Return the names of the inputs that are present."""
        # Without logits shared gates are all 1, and need no input.
        present = (self.routed != "none", self.shared == "softmax", self.staged)
        return tuple(name for name, there in zip(_INPUTS, present, strict=True) if there)


def variant_of(inputs: TensorTypes, attributes: Attributes) -> RouterVariant:
    """Return the variant that a node needs; the node must satisfy the shape rule."""
    routed, shared, stage = (*inputs, None, None, None)[:3]
    # `gate_mode` is an attribute, and a function cannot branch on it: it selects the body.
    mode: Literal["weighted", "mask"] = "mask" if attributes["gate_mode"] == "mask" else "weighted"
    ones: SharedGates = "ones" if int(attributes["num_shared_heads"]) else "none"
    return RouterVariant(
        routed="none" if routed is None else mode,
        shared=ones if shared is None else "softmax",
        staged=stage is not None,
    )


def function_body(variant: RouterVariant, *, opset: int) -> onnx.FunctionProto:
    """Build the body of MoHRouter for one variant.

    Args:
        opset: Version of the standard ops that the model imports, 18 or later.

    Raises:
        ExportError: The opset is older than 18, or the variant has no input.
    """
    # Nothing would tell how many tokens there are.
    if not variant.inputs():
        raise ExportError("MoHRouter: no function body without logits; got a variant without any.")
    # The stage first: both kinds of gates are weighed by it.
    steps = [_CONSTANTS, _stage(variant), _routed(variant), _shared(variant), _joined(variant)]
    # Every parameter up to the last present one; an absent one in between is not read.
    inputs = ", ".join(_INPUTS[: _INPUTS.index(variant.inputs()[-1]) + 1])
    signature = f"MoHRouter <top_k, num_shared_heads, gate_mode> ({inputs}) => (gates)"
    return parsed_function(signature, steps, opset=opset)


# top_k and num_shared_heads stay references to attributes, so one body serves layers of all sizes.
_CONSTANTS = """
    one_element = Constant <value_ints = [1]> ()
    last_axis = Constant <value_ints = [-1]> ()
    top_k_scalar = Constant <value_int: int = @top_k> ()
    num_shared_scalar = Constant <value_int: int = @num_shared_heads> ()
"""


def _stage(variant: RouterVariant) -> str:
    """shared_weight and routed_weight [B, S, 1]: together 2 for each token."""
    # Times 2, so that the mean of both weights is 1.
    if not variant.staged:
        return ""
    return """
        two = Constant <value_float = 2.0> ()
        stage_float = Cast <to = 1> (stage_logits)
        stage_probabilities = Softmax <axis = -1> (stage_float)
        stage_weights = Mul (stage_probabilities, two)
        shared_weight, routed_weight = Split <axis = -1, num_outputs = 2> (stage_weights)
    """


def _routed(variant: RouterVariant) -> str:
    """routed_gates [B, S, R] in float32: gates of the chosen heads, put in their places."""
    # TopK breaks ties toward the lower index, as the op does; softmax is in float32, which ranks.
    if variant.routed == "none":
        return ""
    return f"""
        top_k = Reshape (top_k_scalar, one_element)
        logits = Cast <to = 1> (routed_logits)
        probabilities = Softmax <axis = -1> (logits)
        chosen, chosen_heads = TopK <axis = -1, largest = 1, sorted = 1> (probabilities, top_k)
        {_chosen_gates(variant)}
        routed_shape = Shape (probabilities)
        all_closed = ConstantOfShape <value = float[1] {{0.0}}> (routed_shape)
        routed_gates = ScatterElements <axis = -1> (all_closed, chosen_heads, chosen_gates)
    """


def _chosen_gates(variant: RouterVariant) -> str:
    """chosen_gates [B, S, k]."""
    # Chosen heads are all 1: probabilities only rank.
    if variant.routed == "mask":
        return """
            chosen_shape = Shape (chosen)
            chosen_gates = ConstantOfShape <value = float[1] {1.0}> (chosen_shape)
        """
    # Shares of what the chosen heads have together; the least divisor is the op's own.
    weighed = "Mul (unweighed, routed_weight)" if variant.staged else "Identity (unweighed)"
    return f"""
        epsilon = Constant <value_float = 1.1920928955078125e-07> ()
        top_k_float = Cast <to = 1> (top_k_scalar)
        total = ReduceSum <keepdims = 1> (chosen, last_axis)
        divisor = Max (total, epsilon)
        shares = Div (chosen, divisor)
        unweighed = Mul (shares, top_k_float)
        chosen_gates = {weighed}
    """


def _shared(variant: RouterVariant) -> str:
    """shared_gates [B, S, Sh] in float32."""
    # Times the number of shared heads, so that the mean of their gates is 1.
    if variant.shared == "none":
        return ""
    if variant.shared == "softmax":
        gates = """
            shared_float = Cast <to = 1> (shared_logits)
            shared_probabilities = Softmax <axis = -1> (shared_float)
            num_shared_float = Cast <to = 1> (num_shared_scalar)
            shared_unweighed = Mul (shared_probabilities, num_shared_float)
        """
    else:
        gates = f"""
            num_shared = Reshape (num_shared_scalar, one_element)
            tokens_shape = Shape <start = 0, end = 2> ({variant.inputs()[0]})
            shared_shape = Concat <axis = 0> (tokens_shape, num_shared)
            shared_unweighed = ConstantOfShape <value = float[1] {{1.0}}> (shared_shape)
        """
    weighed = (
        "Mul (shared_unweighed, shared_weight)" if variant.staged else "Identity (shared_unweighed)"
    )
    return f"{gates} shared_gates = {weighed}"


def _joined(variant: RouterVariant) -> str:
    """gates [B, S, Sh + R] in the dtype of the logits."""
    # Shared heads come first in the gates.
    parts = ["shared_gates"] if variant.shared != "none" else []
    parts += ["routed_gates"] if variant.routed != "none" else []
    return f"""
        gates_float = Concat <axis = -1> ({", ".join(parts)})
        gates = CastLike (gates_float, {variant.inputs()[0]})
    """
