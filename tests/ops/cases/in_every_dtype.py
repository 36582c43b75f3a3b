from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import FLOAT_TYPES


def in_every_dtype(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    """Return each case in float32, float16 and bfloat16."""
    return tuple(case.in_dtype(dtype) for case in cases for dtype in FLOAT_TYPES)
