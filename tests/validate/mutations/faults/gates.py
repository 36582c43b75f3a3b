"""Gates that are off: as the router returns them, or between the router and attention."""

import numpy as np

from moh_deploy.graph.forced_gates import GATES_INPUT
from tests.validate.mutations.site import DoesNotApplyError, Site


def _scaled_by(site: Site, factor: np.ndarray) -> None:
    raw, hand_on = site.behind(site.layer.gates)
    factors = site.put_constant(factor.astype(np.float32), "factor")
    site.instead(hand_on, site.add("Mul", [raw, factors], hand_on))


def all_scaled(site: Site) -> None:
    """Every gate is 1 % too large."""
    _scaled_by(site, np.asarray(1.01))


def one_head_scaled(site: Site) -> None:
    """The gate of the last head is 1 % too large."""
    factors = np.ones(site.layer.num_heads)
    factors[-1] = 1.01
    _scaled_by(site, factors)


def rolled_by_the_router(site: Site) -> None:
    """Each head gets the gate of the one before, and the router says so."""
    raw, hand_on = site.behind(site.layer.gates)
    site.instead(hand_on, _rolled(site, raw, hand_on))


def rolled_on_the_way(site: Site) -> None:
    """Each head gets the gate of the one before; the recorded value is right."""
    for node, place in _readers(site):
        node.input[place] = _rolled(site, node.input[place], node)


def scaled_on_the_way(site: Site) -> None:
    """Attention reads gates 1 % too large; the recorded value is right."""
    attention = site.attention()
    place = GATES_INPUT[attention.op_type]
    factor = site.put_constant(np.asarray(1.01, np.float32), "factor")
    attention.input[place] = site.add("Mul", [attention.input[place], factor], attention)


def _rolled(site: Site, value: str, before: object) -> str:
    heads = site.layer.num_heads
    order = site.put_constant(np.asarray([heads - 1, *range(heads - 1)], np.int64), "order")
    return site.add("Gather", [value, order], before, axis=-1)


def _readers(site: Site) -> list[tuple[object, int]]:
    names = (site.layer.node, site.layer.query_projection, site.layer.output_projection)
    found = [node for node in site.graph.node if node.name and node.name in names]
    if not found:
        raise DoesNotApplyError("attention was not replaced")
    return [(node, GATES_INPUT[node.op_type]) for node in found]


FAULTS = {
    "gates + 1 %": all_scaled,
    "one gate + 1 %": one_head_scaled,
    "gates rolled by the router": rolled_by_the_router,
    "gates rolled on the way": rolled_on_the_way,
    "gates + 1 % on the way": scaled_on_the_way,
}
