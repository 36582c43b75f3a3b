"""Mixed routing: shared heads are weighed by logits of their own, in another way than routed ones.

    shared gates = factor * sigmoid(shared_logits)
    routed gates = those of a top_k or a ranked router

The weights of the shared heads may be made in any way, with a sum that divides them or without; a
first stage may weigh shared against routed heads, by a softmax of two logits, say. The MoHRouter
gives shared heads gates of 1, and plain operators weigh them (docs/adr/0041).
"""

from moh_deploy.ops.routers.form import RouterForm
from moh_deploy.ops.routers.ranked import RANKED

MIXED = RouterForm(
    "mixed",
    "the best heads, and shared heads weighed by logits of their own",
    scoring=RANKED.scoring,
    weighing=RANKED.weighing,
)
