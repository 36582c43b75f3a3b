"""The router forms: all that is known of one without torch, one a file.

To add a form, write `<name>.py` here and `frontend/recognize/routers/<name>.py`, which finds it in
a program, and name it in `FORMS`.
"""

from moh_deploy.ops.routers.constant import CONSTANT
from moh_deploy.ops.routers.custom import CUSTOM
from moh_deploy.ops.routers.form import RouterForm
from moh_deploy.ops.routers.mask import MASK
from moh_deploy.ops.routers.mixed import MIXED
from moh_deploy.ops.routers.query_norm import QUERY_NORM
from moh_deploy.ops.routers.ranked import RANKED
from moh_deploy.ops.routers.scored import SCORED
from moh_deploy.ops.routers.shared import SHARED
from moh_deploy.ops.routers.top_k import TOP_K
from moh_deploy.ops.routers.two_stage import TWO_STAGE

__all__ = ["FORMS", "SCORING", "WEIGHING", "RouterForm", "form_named"]

# In the order in which they are looked for. Where two compute the same, the first is reported. The
# last one fits every router.
FORMS = (CONSTANT, SHARED, TWO_STAGE, TOP_K, QUERY_NORM, MASK, RANKED, MIXED, SCORED, CUSTOM)

SCORING = frozenset(operator for form in FORMS for operator in form.scoring)
"""Operators that may make the logits of a MoHRouter, element by element."""

WEIGHING = frozenset(operator for form in FORMS for operator in form.weighing)
"""Operators that may stand between a MoHRouter's gates, their first input, and a layer's gates."""


def form_named(name: str) -> RouterForm:
    """Return the form that a manifest names."""
    return _BY_NAME[name]


_BY_NAME = {form.name: form for form in FORMS}
