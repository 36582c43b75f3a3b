import numpy as np
import pytest

from moh_deploy.errors import ExportError
from moh_deploy.ops import MOH_ROUTER
from moh_deploy.ops.router import RouterVariant, function_body


def test_router_without_logits_has_no_body():
    with pytest.raises(ExportError, match="no function body without logits"):
        function_body(RouterVariant("none", "ones", False), opset=18)


@pytest.mark.parametrize("top_k", range(1, 8))
def test_router_breaks_ties_toward_lower_head_index(top_k: int):
    logits = np.zeros((1, 2, 7), np.float32)
    (gates,) = MOH_ROUTER.reference([logits], MOH_ROUTER.complete({"top_k": top_k}))
    np.testing.assert_array_equal(gates != 0, [[np.arange(7) < top_k] * 2])
