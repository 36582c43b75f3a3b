"""MoHRouter: from router logits to one gate for each token and head.

    shared gates = stage[0] * Sh * softmax(shared_logits)
    routed gates = stage[1] * k * p / max(sum of the chosen p, eps)   for the k largest p, else 0
    with  p = softmax(routed_logits)  and  stage = 2 * softmax(stage_logits)

Source: Mixture-of-Head attention, arXiv 2410.11842, section 3.2: routing scores of shared and
routed heads, two-stage routing. The factors Sh, k and 2 keep the mean gate near 1, as in trained
models.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from moh_deploy.errors import ExportError
from moh_deploy.ops import op_names, spec
from moh_deploy.ops.spec import Arrays, Attributes, OpDim, OpSpec, TensorType, TensorTypes

# MoHRouter as an ONNX function in standard ops: what runs wherever no kernel is installed.

SharedGates = Literal["none", "ones", "softmax"]

_INPUTS = ("routed_logits", "shared_logits", "stage_logits")


@dataclass(frozen=True)
class RouterVariant(spec.BodyVariant):
    """Selects one body of MoHRouter."""

    # Gates of the routed heads: absent, weighted by their probability, or 0 and 1.
    routed: Literal["none", "weighted", "mask"]
    shared: SharedGates  # gates of the shared heads: absent, all 1, or a softmax of logits
    staged: bool  # a softmax of two logits weighs shared against routed gates

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

    Raises:
        ExportError: The opset is older than 18, or the variant has no input.
    """
    # Nothing would tell how many tokens there are.
    if not variant.inputs():
        raise ExportError("MoHRouter: no function body without logits; got a variant without any.")
    steps = [_CONSTANTS]
    # The stage first: both kinds of gates are weighed by it, with 2 in all, so that the mean of
    # both weights [B, S, 1] is 1.
    if variant.staged:
        steps += [
            """
            two = Constant <value_float = 2.0> ()
            stage_float = Cast <to = 1> (stage_logits)
            stage_probabilities = Softmax <axis = -1> (stage_float)
            stage_weights = Mul (stage_probabilities, two)
            shared_weight, routed_weight = Split <axis = -1, num_outputs = 2> (stage_weights)
            """
        ]
    steps += [_routed(variant), _shared(variant)]
    # Shared heads come first in the gates [B, S, Sh + R], which have the dtype of the logits.
    parts = ["shared_gates"] if variant.shared != "none" else []
    parts += ["routed_gates"] if variant.routed != "none" else []
    steps += [
        f"gates_float = Concat <axis = -1> ({', '.join(parts)})",
        f"gates = CastLike (gates_float, {variant.inputs()[0]})",
    ]
    # Every parameter up to the last present one; an absent one in between is not read.
    inputs = ", ".join(_INPUTS[: _INPUTS.index(variant.inputs()[-1]) + 1])
    signature = f"MoHRouter <top_k, num_shared_heads, gate_mode> ({inputs}) => (gates)"
    return spec.parsed_function(signature, steps, opset=opset)


# top_k and num_shared_heads stay references to attributes, so one body serves layers of all sizes.
_CONSTANTS = """
    one_element = Constant <value_ints = [1]> ()
    last_axis = Constant <value_ints = [-1]> ()
    top_k_scalar = Constant <value_int: int = @top_k> ()
    num_shared_scalar = Constant <value_int: int = @num_shared_heads> ()
"""


def _routed(variant: RouterVariant) -> str:
    """routed_gates [B, S, R] in float32: gates of the chosen heads, put in their places."""
    if variant.routed == "none":
        return ""
    # chosen_gates [B, S, k]. In a mask they are all 1: probabilities only rank.
    gates = """
        chosen_shape = Shape (chosen)
        chosen_gates = ConstantOfShape <value = float[1] {1.0}> (chosen_shape)
    """
    if variant.routed == "weighted":
        # Shares of what the chosen heads have together; the least divisor is the op's own.
        weighed = "Mul (unweighed, routed_weight)" if variant.staged else "Identity (unweighed)"
        gates = f"""
            epsilon = Constant <value_float = 1.1920928955078125e-07> ()
            top_k_float = Cast <to = 1> (top_k_scalar)
            total = ReduceSum <keepdims = 1> (chosen, last_axis)
            divisor = Max (total, epsilon)
            shares = Div (chosen, divisor)
            unweighed = Mul (shares, top_k_float)
            chosen_gates = {weighed}
        """
    # TopK breaks ties toward the lower index, as the op does; softmax is in float32, which ranks.
    return f"""
        top_k = Reshape (top_k_scalar, one_element)
        logits = Cast <to = 1> (routed_logits)
        probabilities = Softmax <axis = -1> (logits)
        chosen, chosen_heads = TopK <axis = -1, largest = 1, sorted = 1> (probabilities, top_k)
        {gates}
        routed_shape = Shape (probabilities)
        all_closed = ConstantOfShape <value = float[1] {{0.0}}> (routed_shape)
        routed_gates = ScatterElements <axis = -1> (all_closed, chosen_heads, chosen_gates)
    """


def _shared(variant: RouterVariant) -> str:
    """shared_gates [B, S, Sh] in float32."""
    if variant.shared == "none":
        return ""
    weight = "Mul (shared_unweighed, shared_weight)"
    weighed = f"shared_gates = {weight if variant.staged else 'Identity (shared_unweighed)'}"
    if variant.shared == "ones":
        return f"""
            num_shared = Reshape (num_shared_scalar, one_element)
            tokens_shape = Shape <start = 0, end = 2> ({variant.inputs()[0]})
            shared_shape = Concat <axis = 0> (tokens_shape, num_shared)
            shared_unweighed = ConstantOfShape <value = float[1] {{1.0}}> (shared_shape)
            {weighed}
        """
    # Times the number of shared heads, so that the mean of their gates is 1.
    return f"""
        shared_float = Cast <to = 1> (shared_logits)
        shared_probabilities = Softmax <axis = -1> (shared_float)
        num_shared_float = Cast <to = 1> (num_shared_scalar)
        shared_unweighed = Mul (shared_probabilities, num_shared_float)
        {weighed}
    """


# The shape rule of MoHRouter: the gates' type, and what does not fit together.

_OP = op_names.ROUTER


def router_shape_rule(inputs: TensorTypes, attributes: Attributes) -> tuple[TensorType, ...]:
    """Return the type of the gates.

    Args:
        inputs: Types of routed_logits, shared_logits and stage_logits, None for each absent one.
    """
    routed, shared, stage = (*inputs, None, None, None)[:3]
    top_k, num_shared_heads = int(attributes["top_k"]), int(attributes["num_shared_heads"])
    # Attributes and presence first: the sizes below rely on both.
    if routed is None and top_k != 0:
        raise ExportError(f"{_OP}: top_k is {top_k}, but routed_logits is absent; expected 0.")
    if routed is not None and top_k < 1:
        raise ExportError(
            f"{_OP}: top_k is {top_k}, but routed_logits is given; expected at least 1.",
            hint="A layer whose heads are all shared has no routed_logits.",
        )
    if routed is None and num_shared_heads == 0:
        raise ExportError(
            f"{_OP}: neither routed nor shared heads; "
            "expected routed_logits, or num_shared_heads of at least 1."
        )
    # Weighted gates take all three kinds of logits.
    for name, given in zip(_INPUTS[1:], (shared, stage), strict=True):
        if given is not None and attributes["gate_mode"] == "mask":
            raise ExportError(
                f"{_OP}: gate_mode is 'mask', but {name} is given; "
                "expected none, since every open gate is 1."
            )
    present = [(n, t) for n, t in zip(_INPUTS, inputs, strict=False) if t is not None]
    if not present:
        names = ", ".join(_INPUTS)
        raise ExportError(f"{_OP}: no input is given; expected at least one of {names}.")
    batch, seq_len, dtype = _tokens(present)
    # Dynamic numbers of heads are let through, and only the sum is unknown then.
    num_routed: OpDim = 0
    if routed is not None:
        num_routed = routed.shape[2]
        if isinstance(num_routed, int) and top_k > num_routed:
            raise ExportError(
                f"{_OP}: top_k is {top_k}; expected at most the {num_routed} heads of"
                " routed_logits."
            )
    if shared is not None:
        # Logits of no head are a mistake, rather than nothing to do.
        if num_shared_heads == 0:
            raise ExportError(f"{_OP}: shared_logits is given, but num_shared_heads is 0.")
        spec.check_equal(_OP, "last size of shared_logits", shared.shape[2], num_shared_heads)
    if stage is not None:
        spec.check_equal(_OP, "last size of stage_logits", stage.shape[2], 2)
    heads = num_shared_heads + num_routed if isinstance(num_routed, int) else None
    return (TensorType(dtype, (batch, seq_len, heads)),)


def _tokens(present: list[tuple[str, TensorType]]) -> tuple[OpDim, OpDim, str]:
    """Return batch size, length and dtype, which all inputs share."""
    dtype = present[0][1].dtype
    # The first input present sets dtype and sizes for the others.
    for name, tensor in present:
        dtypes = spec.FLOAT_TYPES if name == present[0][0] else (dtype,)
        spec.check_tensor(_OP, name, tensor, dtypes, (3,))
        spec.check_equal(_OP, f"batch size of {name}", tensor.shape[0], present[0][1].shape[0])
        spec.check_equal(_OP, f"length of {name}", tensor.shape[1], present[0][1].shape[1])
    batch = spec.known(*(tensor.shape[0] for _, tensor in present))
    seq_len = spec.known(*(tensor.shape[1] for _, tensor in present))
    return batch, seq_len, dtype


def reference(inputs: Arrays, attributes: Attributes) -> tuple[np.ndarray, ...]:
    """Compute MoHRouter in float64, one token at a time.

    Args:
        inputs: routed_logits [B, S, R], shared_logits [B, S, Sh], stage_logits [B, S, 2]; None for
            each absent one.

    Returns:
        gates [B, S, Sh + R] in float64, shared heads first.
    """
    routed, shared, stage = (*inputs, None, None, None)[:3]
    batch, seq_len = next(array.shape[:2] for array in inputs if array is not None)
    top_k, num_shared_heads = int(attributes["top_k"]), int(attributes["num_shared_heads"])
    num_routed = 0 if routed is None else routed.shape[2]

    # 1 is right for shared heads without logits.
    gates = np.ones((batch, seq_len, num_shared_heads + num_routed))
    for b, s in np.ndindex(batch, seq_len):
        # Views of one token's gates: what is written there is in the result.
        shared_gates, routed_gates = np.split(gates[b, s], [num_shared_heads])
        if shared is not None:
            shared_gates[:] = num_shared_heads * _softmax(shared[b, s])
        if routed is not None:
            weighted = attributes["gate_mode"] == "weighted"
            routed_gates[:] = _routed_gates(_softmax(routed[b, s]), top_k, weighted=weighted)
        if stage is not None:
            # Times 2, so that the mean of both is 1.
            shared_weight, routed_weight = 2 * _softmax(stage[b, s])
            shared_gates *= shared_weight
            routed_gates *= routed_weight
    return (gates,)


def _routed_gates(probabilities: np.ndarray, top_k: int, *, weighted: bool) -> np.ndarray:
    """The k largest of the probabilities [R] as gates, 0 elsewhere."""
    # The choice is defined on float32 probabilities: where they are equal, the lowest index wins.
    order = np.argsort(-probabilities.astype(np.float32), kind="stable")
    chosen = np.zeros(probabilities.shape, dtype=bool)
    chosen[order[:top_k]] = True
    if not weighted:
        return chosen.astype(np.float64)
    # Normalised over the chosen heads: their gates have the mean 1.
    kept = np.where(chosen, probabilities, 0)
    gates: np.ndarray = top_k * kept / max(kept.sum(), np.finfo(np.float32).eps)
    return gates


def _softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    # The maximum is taken off, so that exp does not overflow.
    exponentials = np.exp(wide - wide.max())
    probabilities: np.ndarray = exponentials / exponentials.sum()
    return probabilities


MOH_ROUTER = OpSpec(
    name=op_names.ROUTER,
    doc="Gates of every head from router logits: shared heads, then routed heads.",
    inputs=(
        spec.OpInput(
            "routed_logits",
            "[B, S, R]. Absent in a layer whose heads are all shared; then `top_k` is 0.",
            optional=True,
        ),
        spec.OpInput(
            "shared_logits",
            "[B, S, Sh]. Absent: each shared gate is 1 (the usual form with one shared head).",
            optional=True,
        ),
        spec.OpInput(
            "stage_logits",
            "[B, S, 2]: weight of the shared, of the routed heads. Absent: no weighing.",
            optional=True,
        ),
    ),
    outputs=(spec.OutputSpec("gates", "[B, S, Sh + R], shared heads first."),),
    attributes=(
        spec.AttributeSpec(
            "top_k",
            "`k`, the routed heads that each token chooses: 1 to `R`; 0 without routed heads.",
            at_least=0,
        ),
        spec.AttributeSpec("num_shared_heads", "`Sh`.", default=0, at_least=0),
        spec.AttributeSpec(
            "gate_mode",
            "mask: every open gate is 1, and there are no shared or stage logits.",
            "string",
            default="weighted",
            choices=("weighted", "mask"),
        ),
    ),
    reference=reference,
    shape_rule=router_shape_rule,
    variant=variant_of,
    body=function_body,
)
