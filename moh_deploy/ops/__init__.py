"""The custom ops: one definition each, which every implementation is tested against.

`docs/ops.md` is the specification for readers.
"""

from moh_deploy.ops.aggregated_attention import MOH_AGGREGATED_ATTENTION, AggregatedAttentionVariant
from moh_deploy.ops.attention import MOH_ATTENTION, AttentionVariant
from moh_deploy.ops.projection import (
    MOH_OUTPUT_PROJECTION,
    MOH_QUERY_PROJECTION,
    ProjectionVariant,
)
from moh_deploy.ops.router import MOH_ROUTER, RouterVariant
from moh_deploy.ops.spec import OPS, VERSION, OpSpec, TensorType, is_moh_op
from moh_deploy.ops.token_conv import MOH_TOKEN_CONV, TokenConvVariant

__all__ = [
    "MOH_AGGREGATED_ATTENTION",
    "MOH_ATTENTION",
    "MOH_OUTPUT_PROJECTION",
    "MOH_QUERY_PROJECTION",
    "MOH_ROUTER",
    "MOH_TOKEN_CONV",
    "OPS",
    "VERSION",
    "AggregatedAttentionVariant",
    "AttentionVariant",
    "OpSpec",
    "ProjectionVariant",
    "RouterVariant",
    "TensorType",
    "TokenConvVariant",
    "is_moh_op",
]
