"""The custom ops: one definition each, which every implementation is tested against.

`docs/ops.md` is the specification for readers.
"""

from collections.abc import Mapping

from moh_deploy.ops.aggregated_attention import MOH_AGGREGATED_ATTENTION
from moh_deploy.ops.attention import MOH_ATTENTION
from moh_deploy.ops.nbits_product import MOH_MATMUL_NBITS
from moh_deploy.ops.nbits_projection import MOH_OUTPUT_PROJECTION_NBITS, MOH_QUERY_PROJECTION_NBITS
from moh_deploy.ops.op_names import base_domain
from moh_deploy.ops.projection import MOH_OUTPUT_PROJECTION, MOH_QUERY_PROJECTION
from moh_deploy.ops.router import MOH_ROUTER
from moh_deploy.ops.spec import VERSION, OpSpec, TensorType
from moh_deploy.ops.token_conv import MOH_TOKEN_CONV

__all__ = [
    "MOH_AGGREGATED_ATTENTION",
    "MOH_ATTENTION",
    "MOH_MATMUL_NBITS",
    "MOH_OUTPUT_PROJECTION",
    "MOH_OUTPUT_PROJECTION_NBITS",
    "MOH_QUERY_PROJECTION",
    "MOH_QUERY_PROJECTION_NBITS",
    "MOH_ROUTER",
    "MOH_TOKEN_CONV",
    "OPS",
    "VERSION",
    "OpSpec",
    "TensorType",
    "is_moh_op",
]

_SPECS = (
    *(MOH_AGGREGATED_ATTENTION, MOH_ATTENTION, MOH_QUERY_PROJECTION, MOH_OUTPUT_PROJECTION),
    *(MOH_MATMUL_NBITS, MOH_QUERY_PROJECTION_NBITS, MOH_OUTPUT_PROJECTION_NBITS),
    *(MOH_ROUTER, MOH_TOKEN_CONV),
)

OPS: Mapping[str, OpSpec] = {spec.name: spec for spec in _SPECS}
"""By name."""


def is_moh_op(domain: str, name: str) -> bool:
    """Tell whether a node or function is one of ours, in whichever of our domains."""
    return name in OPS and base_domain(domain) is not None
