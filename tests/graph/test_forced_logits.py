from __future__ import annotations

import numpy as np

from moh_deploy.graph.layer_reads import force_logits, router_logits
from tests.graph.test_layer_reads import ROUTED, graph


def test_layers_that_share_a_router_are_given_its_logits_once():
    content = graph()
    pair = router_logits(content, (ROUTED, ROUTED))
    routers = [one for one in pair if one is not None]
    dtypes = {"logits": np.dtype(np.float32), "stage": np.dtype(np.float32)}
    force_logits(content, routers, dtypes)
    assert [one.name for one in content.input] == [
        "router.routed_logits.forced",
        "router.stage_logits.forced",
    ]
    assert list(content.node[0].input) == [
        "router.routed_logits.forced",
        "",
        "router.stage_logits.forced",
    ]
