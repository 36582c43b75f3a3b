"""Scored routing: heads are ranked by another score than they are weighed by, such as probabilities
with a bias that balances how often each head is chosen.

    gates = factor * w / (sum of the chosen w + epsilon)    for the k largest scores, else 0

The scores may lie close together and need not be logits: their softmax would make the gaps between
them smaller than they are, so margins are taken of the scores themselves. See docs/adr/0025.
"""

from moh_deploy.ops.routers.form import RouterForm

SCORED = RouterForm(
    "scored",
    "the best heads by one score, weighed by another",
    ranks="logits",
    scoring=("Add", "Clip", "Div", "Mul", "Neg", "Sigmoid", "Softplus", "Sub", "Tanh"),
    weighing=("Concat", "Div", "Mul", "Slice"),
)
