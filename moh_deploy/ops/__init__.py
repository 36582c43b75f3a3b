"""The custom ops: one definition each, which every implementation is tested against.

`docs/ops.md` is the specification for readers.
"""

from moh_deploy.ops.attention import MOH_ATTENTION, AttentionVariant
from moh_deploy.ops.router import MOH_ROUTER, RouterVariant
from moh_deploy.ops.spec import DOMAIN, OPS, VERSION, OpSpec, TensorType

__all__ = [
    "DOMAIN",
    "MOH_ATTENTION",
    "MOH_ROUTER",
    "OPS",
    "VERSION",
    "AttentionVariant",
    "OpSpec",
    "RouterVariant",
    "TensorType",
]
