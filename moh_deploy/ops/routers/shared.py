"""All heads shared: each token runs every head, weighed by a softmax.

    gates = H * softmax(shared_logits)

Source: arXiv 2410.11842, section 3.2, with no routed heads.
"""

from moh_deploy.ops.routers.form import RouterForm

SHARED = RouterForm("shared", "every head runs, weighed by a softmax")
