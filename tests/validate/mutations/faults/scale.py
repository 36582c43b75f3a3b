"""A wrong factor of the scores, as kernel and body read it."""

import numpy as np

from tests.validate.mutations.site import DoesNotApplyError, Site


def _multiplied(site: Site, factor: float) -> None:
    attention = site.attention()
    if attention.op_type == "MoHAggregatedAttention":  # its scale is an input, one for each head
        factors = site.put_constant(np.asarray(factor, np.float32), "factor")
        attention.input[7] = site.add("Mul", [attention.input[7], factors], attention)
        return
    for item in attention.attribute:
        if item.name == "scale":
            item.f *= factor


def one_percent(site: Site) -> None:
    """Scores are 1 % too large."""
    _multiplied(site, 1.01)


def divided_by_the_dimension(site: Site) -> None:
    """Scores are divided by the head's dimension in place of its root."""
    if not site.layer.head_dim:
        raise DoesNotApplyError("attention was not replaced")
    _multiplied(site, site.layer.head_dim**-0.5)


FAULTS = {"scale + 1 %": one_percent, "scale 1/D": divided_by_the_dimension}
