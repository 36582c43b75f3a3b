"""The shape rule of MoHRouter: the gates' type, and what does not fit together."""

from __future__ import annotations

from moh_deploy.errors import ExportError
from moh_deploy.ops import op_names
from moh_deploy.ops.shape_checks import check_equal, check_tensor, known
from moh_deploy.ops.spec import FLOAT_TYPES, Attributes, OpDim, TensorType, TensorTypes

_OP = op_names.ROUTER


def router_shape_rule(inputs: TensorTypes, attributes: Attributes) -> tuple[TensorType, ...]:
    """Return the type of the gates.

    Args:
        inputs: Types of routed_logits, shared_logits and stage_logits, None for each absent one.
        attributes: All attributes of the op.

    Raises:
        ExportError: An input, size or attribute does not fit the others.
    """
    routed, shared, stage = (*inputs, None, None, None)[:3]
    top_k, num_shared_heads = int(attributes["top_k"]), int(attributes["num_shared_heads"])
    # Attributes and presence first: the sizes below rely on both.
    _check_heads(routed, top_k, num_shared_heads)
    _check_mask_mode(shared, stage, str(attributes["gate_mode"]))

    present = _present(inputs)
    batch, seq_len, dtype = _tokens(present)
    # Dynamic numbers of heads are let through, and only the sum is unknown then.
    num_routed: OpDim = 0
    if routed is not None:
        num_routed = routed.shape[2]
        _check_choice(top_k, num_routed)
    if shared is not None:
        # Logits of no head are a mistake, rather than nothing to do.
        if num_shared_heads == 0:
            raise ExportError(f"{_OP}: shared_logits is given, but num_shared_heads is 0.")
        check_equal(_OP, "last size of shared_logits", shared.shape[2], num_shared_heads)
    if stage is not None:
        check_equal(_OP, "last size of stage_logits", stage.shape[2], 2)
    heads = num_shared_heads + num_routed if isinstance(num_routed, int) else None
    return (TensorType(dtype, (batch, seq_len, heads)),)


def _check_heads(routed: TensorType | None, top_k: int, num_shared_heads: int) -> None:
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


def _check_mask_mode(shared: TensorType | None, stage: TensorType | None, gate_mode: str) -> None:
    # Weighted gates take all three kinds of logits.
    if gate_mode != "mask":
        return
    for name, value in (("shared_logits", shared), ("stage_logits", stage)):
        if value is not None:
            raise ExportError(
                f"{_OP}: gate_mode is 'mask', but {name} is given; "
                "expected none, since every open gate is 1."
            )


def _check_choice(top_k: int, num_routed: OpDim) -> None:
    if isinstance(num_routed, int) and top_k > num_routed:
        raise ExportError(
            f"{_OP}: top_k is {top_k}; expected at most the {num_routed} heads of routed_logits."
        )


def _present(inputs: TensorTypes) -> list[tuple[str, TensorType]]:
    names = ("routed_logits", "shared_logits", "stage_logits")
    present = [(n, t) for n, t in zip(names, inputs, strict=False) if t is not None]
    if not present:
        raise ExportError(f"{_OP}: no input is given; expected at least one of {', '.join(names)}.")
    return present


def _tokens(present: list[tuple[str, TensorType]]) -> tuple[OpDim, OpDim, str]:
    """Return batch size, length and dtype, which all inputs share."""
    dtype = present[0][1].dtype
    # The first input present sets dtype and sizes for the others.
    for name, tensor in present:
        dtypes = FLOAT_TYPES if name == present[0][0] else (dtype,)
        check_tensor(_OP, name, tensor, dtypes, (3,))
        check_equal(_OP, f"batch size of {name}", tensor.shape[0], present[0][1].shape[0])
        check_equal(_OP, f"length of {name}", tensor.shape[1], present[0][1].shape[1])
    batch = known(*(tensor.shape[0] for _, tensor in present))
    seq_len = known(*(tensor.shape[1] for _, tensor in present))
    return batch, seq_len, dtype
