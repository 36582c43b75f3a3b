"""Choose the network that runs the attention of each layer of an engine.

Three networks compute what MoHAttention does, and which is the fastest depends on the GPU, on
sizes, and on how many gates are open:

    kernel     the plugin
    fused      TensorRT's own attention, and a product with the gates
    function   the op's body in other layers of TensorRT's

They are timed for one node by itself, with its dtypes, at the usual sizes of each profile, and for
nodes that are alike once: not an engine for each combination. Where nothing can be timed, a table
of estimates decides (`estimates.py`), and the report says that nothing was measured.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import geometric_mean
from typing import Literal

import onnx_ir as ir

from moh_deploy.config.dims import size_at
from moh_deploy.graph.layer_models import fed_values
from moh_deploy.graph.plugin_nodes import why_not_fused
from moh_deploy.ops import OPS, op_names
from moh_deploy.ops.plugin_support import OPEN_SHARE
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES
from moh_deploy.package import LayerInfo, TensorInfo
from moh_deploy.runtime.tensorrt.messages import Fill, TimingAnswer
from moh_deploy.system.bounded_file import sha256_of_json

AttentionWay = Literal["kernel", "fused", "function"]
ATTENTION_WAYS: tuple[AttentionWay, ...] = ("kernel", "fused", "function")

USUAL_OPEN_SHARE = 0.75
"""Of a layer whose recorded runs do not tell; between those of the published models, 0.5 to 0.9."""
# Layers whose shares differ by less than half of this are timed once for all of them.
_SHARE_STEP = 0.05


@dataclass(frozen=True)
class AttentionCandidates:
    """The ways in which the attention of one layer may run."""

    layer: str
    node: str  # its attention node
    op: str
    why_not: Mapping[AttentionWay, str]  # the ways that are out, each with the reason
    query: TensorInfo  # the type of Q, [B, S, H*D] or [B, H, S, D]
    inputs: tuple[TensorInfo, ...]  # what the node reads, constants left out
    fills: Mapping[str, Fill]  # what each input holds while it is timed
    num_heads: int
    open_share: float  # share of open gates in the recorded runs, rounded
    key: str  # equal for nodes that are alike: of one time

    @property
    def possible(self) -> tuple[AttentionWay, ...]:
        """The ways that are left; never none."""
        return tuple(name for name in ATTENTION_WAYS if name not in self.why_not)


@dataclass(frozen=True)
class ChosenWay:
    """The kernel or plain operators that a layer's attention runs by, and who decided it."""

    way: AttentionWay
    decision: str
    # Way to milliseconds at the usual sizes of each profile; empty: not measured.
    times_ms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


TimeWays = Callable[[AttentionCandidates], TimingAnswer]
"""Times the ways of a node that are possible."""
EstimateWay = Callable[[AttentionCandidates], ChosenWay]
"""Chooses one without a time."""


def attention_candidates(
    model: ir.Model,
    layers: Sequence[LayerInfo],
    *,
    ruled_out: Mapping[str, str],
    only_kernels: bool,
) -> tuple[AttentionCandidates, ...]:
    """Return the candidates of every layer that has an attention node.

    Args:
        model: The package's model, not lowered yet; its values have dtypes and shapes.
        layers: With one choice each.
        ruled_out: Name of each node that is to be no kernel, to the reason.
        only_kernels: What can be a kernel is to be one.
    """
    nodes = {node.name: node for node in model.graph if node.name}
    found = []
    for layer in layers:
        # Every one is in the main graph: its layer has one choice, so none is in a branch of `If`.
        node = nodes.get(name := layer.node or "")
        if node is None:
            continue
        why_not: dict[AttentionWay, str] = {}
        if name in ruled_out:
            why_not["kernel"] = ruled_out[name]
        reason = why_not_fused(model, node)
        if only_kernels and not why_not:
            why_not = dict.fromkeys(("fused", "function"), "kernels are required")
        elif reason is not None:
            why_not["fused"] = reason
        found.append(_of_node(layer, node, why_not))
    return tuple(found)


def choose(
    found: Sequence[AttentionCandidates], *, measure: TimeWays | None, estimate: EstimateWay
) -> dict[str, ChosenWay]:
    """Return the name of each attention node to what runs it.

    Args:
        measure: Asked once for all nodes that are alike; None: nothing can be timed here.
        estimate: Asked where there are no times.
    """
    by_key: dict[str, ChosenWay] = {}
    for candidates in found:
        if candidates.key not in by_key:
            by_key[candidates.key] = _choice(candidates, measure, estimate)
    return {candidates.node: by_key[candidates.key] for candidates in found}


def _choice(
    candidates: AttentionCandidates, measure: TimeWays | None, estimate: EstimateWay
) -> ChosenWay:
    if len(candidates.possible) == 1:
        reasons = "; ".join(f"no {way}: {why}" for way, why in candidates.why_not.items())
        return ChosenWay(candidates.possible[0], f"the only candidate ({reasons})")
    if measure is None:
        return estimate(candidates)
    timed = measure(candidates)
    failed = "".join(f"; {way} was not timed: {why}" for way, why in timed.failed.items())
    ways = [way for way in candidates.possible if way in timed.times_ms]
    if not ways:
        estimated = estimate(candidates)
        return ChosenWay(estimated.way, estimated.decision + failed)
    # Every profile counts alike, be its runs long or short: hence the ratios.
    fastest = min(ways, key=lambda way: geometric_mean(timed.times_ms[way]))
    return ChosenWay(fastest, f"fastest of {len(ways)} timed here{failed}", timed.times_ms)


def _of_node(
    layer: LayerInfo, node: ir.Node, why_not: dict[AttentionWay, str]
) -> AttentionCandidates:
    share = layer.active_share if layer.active_share is not None else USUAL_OPEN_SHARE
    share = round(round(share / _SHARE_STEP) * _SHARE_STEP, 2)
    fed = fed_values(node)
    constants = [_info(value) for value in node.inputs if value is not None and value not in fed]
    inputs = tuple(map(_info, fed))
    attributes = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if name not in (*PLUGIN_ATTRIBUTES, OPEN_SHARE.name)
    }
    # Names differ from layer to layer; that one value is read twice is part of the work.
    read = [None if value is None else [*fed, value].index(value) for value in node.inputs]
    types = [(info.dtype, info.shape) for info in (*inputs, *constants)]
    key = sha256_of_json(
        {"op": node.op_type, "attributes": attributes, "read": read, "types": types}
        | {"share": share, "why not": why_not}
    )
    fills = {
        info.name: _fill(node, value, info.dtype) for info, value in zip(inputs, fed, strict=True)
    }
    assert node.name is not None
    assert node.inputs[0] is not None
    return AttentionCandidates(
        layer=layer.path,
        node=node.name,
        op=node.op_type,
        why_not=why_not,
        query=_info(node.inputs[0]),
        inputs=inputs,
        fills=fills,
        num_heads=layer.num_heads,
        open_share=share,
        key=key,
    )


def _fill(node: ir.Node, value: ir.Value, dtype: str) -> Fill:
    """A mask that hides nothing is the most work: what masks hide is seldom skipped."""
    name = OPS[node.op_type].inputs[list(node.inputs).index(value)].name
    if name == "gates":
        return "gates"
    if dtype == "bool":
        return "seen"
    if name == "nonpad_kv_seqlen":
        return "filled"
    if name == "key_ranges":
        return "ranges"
    is_mask = node.op_type == op_names.ATTENTION and name == "attn_mask"
    return "random" if "float" in dtype and not is_mask else "zero"


def _info(value: ir.Value) -> TensorInfo:
    assert value.name is not None
    assert value.dtype is not None
    shape = () if value.shape is None else tuple(value.shape)
    sizes = (size if isinstance(size, int) else size.value or "?" for size in shape)
    return TensorInfo(value.name, str(value.dtype.numpy()), tuple(sizes))


def unknown_sizes(candidates: AttentionCandidates, dims: Collection[str]) -> str | None:
    """Return an input with a size that follows from no dimension of the package; None: all do."""
    known = dict.fromkeys(dims, 1)
    for info in candidates.inputs:
        if any(size_at(size, known) is None for size in info.shape):
            return f"{info.name} is {list(info.shape)}"
    return None
