"""The faults by name, each with what plants it."""

from collections.abc import Callable, Mapping, Sequence

import onnx

from moh_deploy.package import LayerInfo, VectorSet
from tests.validate.mutations.faults import (
    bodies,
    gates,
    heads,
    masks,
    routing,
    scale,
    sizes,
    weights,
)
from tests.validate.mutations.site import Site

Plant = Callable[[Site], None]

FAULTS: Mapping[str, Plant] = {
    **routing.FAULTS,
    **gates.FAULTS,
    **scale.FAULTS,
    **masks.FAULTS,
    **weights.FAULTS,
    **heads.FAULTS,
    **bodies.FAULTS,
    **sizes.FAULTS,
}

SEEN_BY_KERNELS_ONLY = frozenset(bodies.SEEN_BY_KERNELS_ONLY)
"""Right as function bodies: `kernels="off"` must accept them, and kernels refuse them."""


def plant(
    fault: str,
    model: onnx.ModelProto,
    layers: tuple[LayerInfo, ...],
    index: int,
    vectors: Sequence[VectorSet],
) -> onnx.ModelProto:
    """Return a copy of a float32 model with a fault in one layer.

    Raises:
        DoesNotApplyError: The layer has nothing that this fault could change.
    """
    site = Site(onnx.ModelProto.FromString(model.SerializeToString()), layers, index, vectors)
    FAULTS[fault](site)
    return site.model
