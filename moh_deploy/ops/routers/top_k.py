"""Top-k routing: the k best heads, weighed by their share of the k best probabilities.

    routed gates = factor * p / sum of the chosen p    for the k largest p, else 0
    with  p = softmax(routed_logits)  and  factor = k, as in arXiv 2410.11842, or any other number

Shared heads have a softmax of their own, or a gate of one number.
"""

from moh_deploy.ops.routers.form import RouterForm

TOP_K = RouterForm(
    "top_k",
    "the best heads, weighed by their share of the probability",
    weighing=("Concat", "Mul", "Slice"),
)
