from __future__ import annotations

from dataclasses import replace

import numpy as np

from moh_deploy.graph.layer_reads import RouterLogits
from moh_deploy.ops.routers import MASK
from moh_deploy.validate.compare.tolerances import tolerance_for
from moh_deploy.validate.edge_cases.routing_judge import GateJudge, values_mismatch

ROUTER = RouterLogits(
    path="attn",
    node="attn.MoHRouter",
    logits={"routed_logits": "scores"},
    gates="gates",
    attributes={"top_k": 2, "num_shared_heads": 0, "gate_mode": "mask"},
    attention=None,
    in_order=True,
    form=MASK,
)
LOGITS = {"routed_logits": np.zeros((1, 3, 4), np.float32)}


def test_equal_gates_of_another_router_or_case_are_judged_anew():
    gates = np.tile(np.asarray([1, 1, 0, 0], np.float32), (1, 3, 1))
    judge = GateJudge()
    assert judge.mismatch("flat", ROUTER, LOGITS, gates) is None
    other = replace(ROUTER, attributes={**ROUTER.attributes, "top_k": 1})
    assert judge.mismatch("flat", other, LOGITS, gates) is not None
    rising = {"routed_logits": LOGITS["routed_logits"] + np.arange(4, dtype=np.float32)}
    assert judge.mismatch("same heads", ROUTER, rising, gates) is not None


def test_masks_among_values_excuse_no_others():
    masked = np.array([-1e9, 1.0, 2.0], np.float32)
    rule = tolerance_for("float32")
    assert values_mismatch("scores", masked, masked, rule) is None
    assert values_mismatch("scores", masked + np.float32([0, 0, 0.1]), masked, rule) is not None
