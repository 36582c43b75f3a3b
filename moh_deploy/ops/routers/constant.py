"""Constant routing: learned queries choose their heads, so no input changes the gates.

The gates are computed once, when the model is exported, and are weights of the package: nothing is
ranked when it runs. The first layer of a decoder with learned queries (DETR) and latent
cross-attention (Perceiver) have such routers.
"""

from moh_deploy.ops.routers.form import RouterForm

CONSTANT = RouterForm(
    "constant", "gates that no input changes, computed at export", is_constant=True
)
