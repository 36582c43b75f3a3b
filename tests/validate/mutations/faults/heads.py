"""Heads of a projection that stand where others belong."""

from functools import partial

import numpy as np

from moh_deploy.system.npz import Array
from tests.validate.mutations.site import DoesNotApplyError, Linear, Role, Site


def _heads(site: Site, role: Role, linear: Linear) -> int:
    layer = site.layer
    count = layer.num_heads if role in ("q", "o") else layer.num_kv_heads
    width = linear.weight.shape[0 if role == "o" else 1]
    if count is None or count < 2 or width % count:
        raise DoesNotApplyError("no two heads stand side by side")
    if role in ("q", "k") and width != count * (layer.head_dim or 0):
        raise DoesNotApplyError("the product makes more than these heads")
    return count


def _reordered(array: Array, count: int, axis: int, order: list[int]) -> Array:
    """[.., count * D, ..] with its heads in another order."""
    moved = np.moveaxis(array, axis, 0)
    split = moved.reshape(count, -1, *moved.shape[1:])[order]
    return np.moveaxis(split.reshape(moved.shape), 0, axis)


def swapped(site: Site, role: Role) -> None:
    """The first two heads of a projection are swapped, weights and biases."""
    linear = site.linear(role)
    count = _heads(site, role, linear)
    order = [1, 0, *range(2, count)]
    site.set_weight(linear, _reordered(linear.weight, count, 0 if role == "o" else 1, order))
    if linear.bias is not None and role != "o":
        site.set_bias(linear, _reordered(linear.bias, count, 0, order))


def wrong_value_head(site: Site) -> None:
    """The second head has the values of the first."""
    linear = site.linear("v")
    count = _heads(site, "v", linear)
    order = [0, 0, *range(2, count)]
    site.set_weight(linear, _reordered(linear.weight, count, 1, order))
    if linear.bias is not None:
        site.set_bias(linear, _reordered(linear.bias, count, 0, order))


_SWAPPED: tuple[Role, ...] = ("q", "k", "v", "o")

FAULTS = {
    **{f"heads of {role} swapped": partial(swapped, role=role) for role in _SWAPPED},
    "wrong value head": wrong_value_head,
}
