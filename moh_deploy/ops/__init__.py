"""The custom ops: one definition each, which every implementation is tested against.

`docs/ops.md` is the specification for readers.
"""

from moh_deploy.ops.aggregated_attention import MOH_AGGREGATED_ATTENTION
from moh_deploy.ops.attention import MOH_ATTENTION
from moh_deploy.ops.projection import MOH_OUTPUT_PROJECTION, MOH_QUERY_PROJECTION
from moh_deploy.ops.router import MOH_ROUTER
from moh_deploy.ops.spec import OPS, VERSION, OpSpec, TensorType, is_moh_op
from moh_deploy.ops.token_conv import MOH_TOKEN_CONV

__all__ = [
    "MOH_AGGREGATED_ATTENTION",
    "MOH_ATTENTION",
    "MOH_OUTPUT_PROJECTION",
    "MOH_QUERY_PROJECTION",
    "MOH_ROUTER",
    "MOH_TOKEN_CONV",
    "OPS",
    "VERSION",
    "OpSpec",
    "TensorType",
    "is_moh_op",
]
