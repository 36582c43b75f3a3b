"""The ops of `moh_deploy.ops` as torch operators, so that a rewritten program can be run, checked
and exported.

They are dense and written for clarity: in torch they only have to be right. Importing this package
registers them. One file an op or a kind of op, which also holds the translation to an ONNX node.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from moh_deploy.frontend.torch_ops import (
    aggregated_attention,
    attention,
    projection,
    router,
    token_conv,
)

TRANSLATIONS: dict[Callable[..., object], Callable[..., object]] = {
    torch.ops.moh.aggregated_attention.default: aggregated_attention.translate,
    torch.ops.moh.attention.default: attention.translate,
    torch.ops.moh.output_projection.default: projection.translate_output,
    torch.ops.moh.query_projection.default: projection.translate_query,
    torch.ops.moh.router.default: router.translate,
    torch.ops.moh.token_conv.default: token_conv.translate,
}
