"""Compute each operator of ONNX in torch: one file a group.

elementwise  each element of its own, and broadcasts
layout       elements are moved
creation     tensors of a shape or range
products     matrices, convolutions, pooling; sums, extremes, ranks, softmax
norms        normalisations
attention    attention and rotary embeddings as one operator
images       images of another size
sizes        what operators do with numbers
moh          the operators of our own packages
opaque       operators that are not in the table: ONNX Runtime computes them, and they stay
"""

# Each fills the table.
from moh_deploy.frontend.load.onnx_graph.operators import (  # noqa: F401  # noqa: F401
    attention,
    elementwise,
    layout,
    moh,
    products,
    sizes,
)
