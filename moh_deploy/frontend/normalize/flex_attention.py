"""Attention whose scores Python functions change: torch traces it, ONNX has no such operator."""

from __future__ import annotations

from torch.export import ExportedProgram

from moh_deploy.errors import ExportError
from moh_deploy.frontend.fx.graph import module_path, op


def refuse_flex_attention(program: ExportedProgram) -> None:
    """Say what to call instead of `flex_attention`.

    Raises:
        ExportError: Naming the modules that call it.
    """
    callers = [
        ".".join(module_path(node)) or "the model itself"
        for node in program.graph.nodes
        if op(node) == "flex_attention"
    ]
    if callers:
        raise ExportError(
            f"flex_attention has no form in ONNX; called in {', '.join(dict.fromkeys(callers))}.",
            hint="Under torch.compiler.is_exporting(), call F.scaled_dot_product_attention instead:"
            " what score_mod adds as a float attn_mask [B, H, S, T], what mask_mod allows as a bool"
            " one. The package is compared with the model as it runs, with flex_attention.",
        )
