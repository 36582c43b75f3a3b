"""Names of the ops that more than their own spec mentions, as nodes, manifests and messages have
them."""

import re
from typing import Final, Literal

# Domains of MoH nodes: what runs a node, and which of several function bodies it has.
#
#   moh                      a kernel where there is one, else the function body
#   moh.dense                the function body, on purpose: no kernel is registered for it
#   moh.2, moh.dense.2, ...  the same, for nodes that need another body than those of `moh`
#
# A model's functions are found by domain and name: many readers do not know overloads (ADR 27).
KERNEL_DOMAIN, DENSE_DOMAIN = "moh", "moh.dense"

_FORM = re.compile(r"(?P<base>moh(\.dense)?)(\.(?P<number>[2-9]|[1-9][0-9]+))?")


def base_domain(domain: str) -> str | None:
    """Return `moh` or `moh.dense`; None of a domain that is not ours."""
    found = _FORM.fullmatch(domain)
    return None if found is None else found["base"]


def numbered_domain(base: str, number: int) -> str:
    """Return the domain of nodes with one of several bodies, counted from 1."""
    return base if number == 1 else f"{base}.{number}"


def with_base(domain: str, base: str) -> str:
    """Return the domain for the same body, with kernels or without."""
    found = _FORM.fullmatch(domain)
    assert found is not None, f"{domain} is not a domain of MoH nodes"
    return numbered_domain(base, int(found["number"] or 1))


AGGREGATED_ATTENTION: Final = "MoHAggregatedAttention"
ATTENTION: Final = "MoHAttention"
MATMUL_NBITS: Final = "MoHMatMulNBits"
OUTPUT_PROJECTION: Final = "MoHOutputProjection"
OUTPUT_PROJECTION_NBITS: Final = "MoHOutputProjectionNBits"
QUERY_PROJECTION: Final = "MoHQueryProjection"
QUERY_PROJECTION_NBITS: Final = "MoHQueryProjectionNBits"
ROUTER: Final = "MoHRouter"
TOKEN_CONV: Final = "MoHTokenConv"

AttentionOp = Literal["MoHAttention", "MoHAggregatedAttention"]
