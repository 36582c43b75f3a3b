"""Weights and biases of a projection that are not the model's, or not quite."""

from functools import partial

import numpy as np

from moh_deploy.system.npz import Array
from tests.validate.mutations.site import DoesNotApplyError, Role, Site

ROLES: tuple[Role, ...] = ("q", "k", "v", "o", "router")
NOISE = (0.001, 0.005, 0.02)
STALE = 0.1
"""Share of other weights in a stale one."""


def _drawn(like: Array) -> Array:
    """Return numbers of the spread of an array, the same each time."""
    return np.random.default_rng(like.size).standard_normal(like.shape) * np.std(like)


def noisy(site: Site, role: Role, share: float) -> None:
    """Each weight is off by a normal share of itself."""
    linear = site.linear(role)
    off = np.random.default_rng(linear.weight.size).standard_normal(linear.weight.shape)
    site.set_weight(linear, linear.weight * (1 + share * off))


def stale(site: Site, role: Role) -> None:
    """The weights are those of an earlier step of training: a blend with others."""
    linear = site.linear(role)
    site.set_weight(linear, (1 - STALE) * linear.weight + STALE * _drawn(linear.weight))


def stale_bias(site: Site, role: Role) -> None:
    """The bias is a blend with another one."""
    linear = site.linear(role)
    if linear.bias is None:
        raise DoesNotApplyError("no bias")
    site.set_bias(linear, (1 - STALE) * linear.bias + STALE * _drawn(linear.bias))


FAULTS = {
    **{f"stale {role}": partial(stale, role=role) for role in ROLES},
    **{f"stale bias {role}": partial(stale_bias, role=role) for role in ROLES if role != "router"},
    **{
        f"noise {share:.1%} {role}": partial(noisy, role=role, share=share)
        for share in NOISE
        for role in ROLES
    },
}
