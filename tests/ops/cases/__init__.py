"""Named cases: the runs that every implementation of an op must get right.

A case builds its inputs from its name alone, so that a function body, a CPU kernel, a CUDA kernel
and a TensorRT plugin all see the same numbers.
"""

from collections.abc import Mapping

from moh_deploy.ops.cases import Case
from tests.ops.cases import (
    aggregated_attention,
    attention,
    nbits_product,
    nbits_projection,
    projection,
    router,
    token_conv,
)

OP_CASES: Mapping[str, tuple[Case, ...]] = {
    "MoHAggregatedAttention": aggregated_attention.CASES,
    "MoHAttention": attention.CASES,
    "MoHMatMulNBits": nbits_product.CASES,
    "MoHOutputProjection": projection.OUTPUT_CASES,
    "MoHOutputProjectionNBits": nbits_projection.OUTPUT_CASES,
    "MoHQueryProjection": projection.QUERY_CASES,
    "MoHQueryProjectionNBits": nbits_projection.QUERY_CASES,
    "MoHRouter": router.CASES,
    "MoHTokenConv": token_conv.CASES,
}
ALL_CASES = tuple(case for cases in OP_CASES.values() for case in cases)


def named_case(op: str, name: str, dtype: str = "float32") -> Case:
    (case,) = (case for case in OP_CASES[op] if (case.name, case.dtype) == (name, dtype))
    return case
