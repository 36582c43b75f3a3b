"""Keep the caches of a model in lower precision in that precision, from call to call.

A model's inputs and outputs keep their dtypes when it is lowered, so that a cache in float32 would
be cast as a whole, twice in every call, and be written into a copy.
"""

from __future__ import annotations

import onnx_ir as ir

from moh_deploy.package import CachesInPlace


def narrow_caches(model: ir.Model, caches: CachesInPlace) -> dict[str, str]:
    """Take away the casts between caches and what is written into them.

    Returns:
        The name of each input and output whose dtype that changed, to its dtype now.
    """
    graph, changed = model.graph, dict[str, str]()
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    for buffer in caches.buffers:
        past, present = inputs[buffer.past], outputs[buffer.present]
        widened, narrowed = present.producer(), [node for node, _ in past.uses()]
        if widened is None or not _is_cast(widened) or not all(map(_is_cast, narrowed)):
            continue
        if present.uses():  # by what stays in float32
            continue
        written = widened.inputs[0]
        (low,) = {node.outputs[0].dtype for node in narrowed}
        if written is None or written.dtype != low or low is None:
            continue
        past.dtype = low
        for node in narrowed:
            node.outputs[0].replace_all_uses_with(past)
            graph.remove(node, safe=True)
        # The output keeps its name.
        graph.outputs[graph.outputs.index(present)] = written
        graph.remove(widened, safe=True)
        written.name = buffer.present
        changed |= dict.fromkeys((buffer.past, buffer.present), str(low.numpy()))
    return changed


def _is_cast(node: ir.Node) -> bool:
    return node.op_type == "Cast" and not node.domain
