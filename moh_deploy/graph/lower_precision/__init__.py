"""Turn a float32 graph into one whose types say where float16 or bfloat16 is used.

policy   which operators stay in float32, and why: the table to argue about
casts    types and Casts, once it is decided
"""

from moh_deploy.graph.lower_precision.casts import lower_precision
from moh_deploy.graph.lower_precision.policy import (
    LowType,
    PrecisionPlan,
    largest_allowed,
    largest_number,
    plan_precision,
)

__all__ = [
    "LowType",
    "PrecisionPlan",
    "largest_allowed",
    "largest_number",
    "lower_precision",
    "plan_precision",
]
