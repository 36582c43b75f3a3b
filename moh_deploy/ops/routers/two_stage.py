"""Two-stage routing: a first stage weighs the shared heads against the routed ones.

    shared gates = stage[0] * Sh * softmax(shared_logits)
    routed gates = stage[1] * k * p / sum of the chosen p    for the k largest p, else 0
    with  p = softmax(routed_logits)  and  stage = 2 * softmax(stage_logits)

Source: arXiv 2410.11842, section 3.2.
"""

from moh_deploy.ops.routers.form import RouterForm

TWO_STAGE = RouterForm("two_stage", "shared heads and the best routed ones, weighed in two stages")
