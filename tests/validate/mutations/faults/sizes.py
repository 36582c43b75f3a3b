"""A fault that shows at one of the recorded sizes only."""

import numpy as np

from tests.validate.mutations.site import DoesNotApplyError, Site


def values_at_one_size(site: Site) -> None:
    """Values are 5 % too large at the size of the last recorded run, and right at all others."""
    attention = site.attention()
    shapes = [vector.gates[site.index].shape[:2] for vector in site.vectors]
    axis = next((a for a in (0, 1) if [s[a] for s in shapes].count(shapes[-1][a]) == 1), None)
    if axis is None:
        raise DoesNotApplyError("no recorded run has a size of its own")
    shape = site.add("Shape", [site.layer.gates], attention)
    place = site.put_constant(np.asarray(axis, np.int64), "axis")
    size = site.add("Gather", [shape, place], attention)
    that = site.put_constant(np.asarray(shapes[-1][axis], np.int64), "size")
    is_it = site.add("Equal", [size, that], attention)
    wrong, right = (site.put_constant(np.asarray(n, np.float32), "factor") for n in (1.05, 1.0))
    factor = site.add("Where", [is_it, wrong, right], attention)
    attention.input[2] = site.add("Mul", [attention.input[2], factor], attention)


FAULTS = {"values + 5 % at one size": values_at_one_size}
