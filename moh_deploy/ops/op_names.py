"""Names of the ops that more than their own spec mentions, as nodes, manifests and messages have
them."""

from __future__ import annotations

from typing import Final, Literal

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
