"""Ranked routing: a MoHRouter keeps the k best heads, and plain operators weigh them by what they
were ranked by: probabilities or sigmoids, as they are or divided by their sum.

    gates = factor * w / (sum of the chosen w + epsilon)    for the k largest w, else 0

The MoHRouter ranks the logits, of which these weights are an increasing function: two heads that
both have a sigmoid of nearly 0 are told apart by them. See docs/adr/0025.
"""

from moh_deploy.ops.routers.form import RouterForm

RANKED = RouterForm(
    "ranked",
    "the best heads, weighed in a way of its own by what they are ranked by",
    scoring=("Add", "Clip", "Div", "Mul", "Neg", "Sigmoid", "Softplus", "Sub", "Tanh"),
    weighing=("Concat", "Div", "Mul", "Slice"),
)
