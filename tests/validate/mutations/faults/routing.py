"""Which heads a token takes: another number, order, or identity; a router that reads another
tensor, or weighs in another way."""

import numpy as np
import onnx
from onnx import helper

from tests.validate.mutations.site import DoesNotApplyError, Site


def _set(node: onnx.NodeProto, name: str, value: int | str) -> None:
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def one_head_more(site: Site) -> None:
    """A token takes top_k + 1 heads."""
    router, top_k = site.router(), site.attribute(site.router(), "top_k")
    if top_k >= site.num_routed():
        raise DoesNotApplyError("all heads are chosen")
    _set(router, "top_k", top_k + 1)


def one_head_fewer(site: Site) -> None:
    """A token takes top_k - 1 heads."""
    router, top_k = site.router(), site.attribute(site.router(), "top_k")
    site.routed_logits()
    if top_k < 2:
        raise DoesNotApplyError("one head is chosen")
    _set(router, "top_k", top_k - 1)


def ranked_by_the_wrong_end(site: Site) -> None:
    """The worst heads are chosen."""
    if not site.layer.router_replaced:
        _plain_top_k_by_the_wrong_end(site)
        return
    value, router = site.routed_logits(), site.router()
    router.input[0] = site.add("Neg", [value], router)


def _plain_top_k_by_the_wrong_end(site: Site) -> None:
    for node in site.upstream(site.layer.gates, _BEHIND_A_CHOICE):
        if node.op_type == "TopK":
            _set(node, "largest", 0)
            return
    raise DoesNotApplyError("router has no TopK")


_BEHIND_A_CHOICE = (
    "Add",
    "And",
    "Cast",
    "Concat",
    "Div",
    "Equal",
    "Expand",
    "Gather",
    "GatherElements",
    "GreaterOrEqual",
    "Identity",
    "Less",
    "Mul",
    "Not",
    "OneHot",
    "ReduceSum",
    "Reshape",
    "ScatterElements",
    "Slice",
    "Squeeze",
    "Sub",
    "Transpose",
    "Unsqueeze",
    "Where",
)


def _reordered(site: Site, value: str, order: list[int], before: onnx.NodeProto) -> str:
    places = site.put_constant(np.asarray(order, np.int64), "order")
    return site.add("Gather", [value, places], before, axis=-1)


def shared_and_routed_swapped(site: Site) -> None:
    """The gates of shared heads stand where those of routed heads belong."""
    shared, routed = site.attribute(site.router(), "num_shared_heads"), site.num_routed()
    if not shared:
        raise DoesNotApplyError("no shared heads")
    raw, hand_on = site.behind(site.router().output[0])
    order = [*range(shared, shared + routed), *range(shared)]
    site.instead(hand_on, _reordered(site, raw, order, hand_on))


def two_heads_swapped(site: Site) -> None:
    """The logits of two routed heads are swapped."""
    value, router, routed = site.routed_logits(), site.router(), site.num_routed()
    if routed < 2:
        raise DoesNotApplyError("one routed head")
    router.input[0] = _reordered(site, value, [1, 0, *range(2, routed)], router)


def stages_swapped(site: Site) -> None:
    """The weight of the shared heads is given to the routed ones."""
    router = site.router()
    if len(router.input) < 3 or not router.input[2]:
        raise DoesNotApplyError("a single stage")
    router.input[2] = _reordered(site, router.input[2], [1, 0], router)


def softmax_twice(site: Site) -> None:
    """The router ranks and weighs what is a softmax already."""
    value, router = site.routed_logits(), site.router()
    router.input[0] = site.add("Softmax", [value], router, axis=-1)


def not_renormalised(site: Site) -> None:
    """The probabilities of the chosen heads are not divided by their sum."""
    value, router = site.routed_logits(), site.router()
    if any(item.name == "gate_mode" and item.s == b"mask" for item in router.attribute):
        raise DoesNotApplyError("gates are 0 and 1")
    shared = site.attribute(router, "num_shared_heads")
    raw, hand_on = site.behind(router.output[0])
    axis = site.put_constant(np.asarray([-1], np.int64), "axis")
    split = site.put_constant(np.asarray([shared, site.num_routed()], np.int64), "split")
    routed = raw
    if shared:
        names = [site.name("shared"), site.name("routed")]
        node = helper.make_node("Split", [raw, split], names, name=site.name("split"), axis=-1)
        site.graph.node.insert(site.place_of(hand_on), node)
        routed = names[1]
    shares = site.add("Softmax", [value], hand_on, axis=-1)
    zero = site.put_constant(np.zeros((), np.float32), "zero")
    closed = site.add("Equal", [routed, zero], hand_on)
    chosen = site.add("Where", [closed, zero, shares], hand_on)
    total = site.add("ReduceSum", [chosen, axis], hand_on, keepdims=1)
    gates = site.add("Mul", [routed, total], hand_on)
    joined = site.add("Concat", [names[0], gates], hand_on, axis=-1) if shared else gates
    site.instead(hand_on, joined)


def gate_mode_flipped(site: Site) -> None:
    """Gates that weigh are 0 and 1, or the other way round, as body and kernel see it."""
    router = site.router()
    site.routed_logits()
    if any(router.input[1:]):
        raise DoesNotApplyError("logits of shared heads or stages weigh")
    mode = next(
        (item.s.decode() for item in router.attribute if item.name == "gate_mode"), "weighted"
    )
    body = site.own_body(router)
    makers = {node.output[0]: node for node in body.node}
    if mode == "mask":
        if "chosen_gates" not in makers or makers["chosen_gates"].op_type != "ConstantOfShape":
            raise DoesNotApplyError("another body")
        makers["chosen_gates"].output[0] = "ones"
        at = list(body.node).index(makers["chosen_gates"]) + 1
        added = onnx.parser.parse_function(
            """<domain: "moh", opset_import: ["" : 20]> f <top_k> (chosen, last_axis) => (gates) {
                planted_total = ReduceSum <keepdims = 1> (chosen, last_axis)
                planted_shares = Div (chosen, planted_total)
                planted_k = Constant <value_int: int = @top_k> ()
                planted_k_float = Cast <to = 1> (planted_k)
                chosen_gates = Mul (planted_shares, planted_k_float)
            }"""
        ).node
    else:
        if "unweighed" not in makers:
            raise DoesNotApplyError("another body")
        last = makers["unweighed"]
        last.output[0] = "weighed"
        at = list(body.node).index(last) + 1
        added = onnx.parser.parse_function(
            """<domain: "moh", opset_import: ["" : 20]> f (chosen) => (gates) {
                planted_shape = Shape (chosen)
                unweighed = ConstantOfShape <value = float[1] {1.0}> (planted_shape)
            }"""
        ).node
    for offset, node in enumerate(added):
        body.node.insert(at + offset, node)
    _set(router, "gate_mode", "weighted" if mode == "mask" else "mask")


def reads_another_layers_logits(site: Site) -> None:
    """The router ranks what an earlier layer's router ranks."""
    own, routed = site.routed_logits(), site.num_routed()
    for index in range(site.index):
        other = Site(site.model, site.layers, index, site.vectors)
        try:
            value = other.routed_logits()
            fits = other.num_routed() == routed
        except DoesNotApplyError:
            continue
        shapes = [
            (vector.gates[index].shape[:2], vector.gates[site.index].shape[:2])
            for vector in site.vectors
        ]
        if fits and value != own and all(a == b for a, b in shapes):
            site.router().input[0] = value
            return
    raise DoesNotApplyError("no earlier layer ranks as many heads of as many tokens")


def reads_before_the_norm(site: Site) -> None:
    """The router reads the tokens as they are in front of the norm."""
    product = site.linear("router").node
    for norm in site.upstream(product.input[0], ("Add", "Cast", "Identity", "Mul", "Reshape")):
        if norm.op_type in ("LayerNormalization", "RMSNormalization"):
            product.input[0] = _as(site, norm.input[0], product.input[0], product)
            return
    raise DoesNotApplyError("no norm in front of the router")


def _as(site: Site, value: str, other: str, before: onnx.NodeProto) -> str:
    """Return a value in the shape of another one."""
    return site.add("Reshape", [value, site.add("Shape", [other], before)], before)


def reads_the_values(site: Site) -> None:
    """The router reads another tensor of the same shape: what values are made to."""
    linear = site.linear("router")
    try:
        other = site.linear("v")
    except DoesNotApplyError as error:
        raise DoesNotApplyError("no values of the same tokens") from error
    read = {linear.node.input[0], other.node.input[0]}
    if len(read) != 1 or other.weight.shape[1] != linear.weight.shape[0]:
        raise DoesNotApplyError("no other tensor of the same shape")
    # What attention reads may stand behind the router: compute the values here once more.
    product = site.add("MatMul", [other.node.input[0], other.node.input[1]], linear.node)
    if other.transposed:
        raise DoesNotApplyError("values are of a Gemm")
    linear.node.input[0] = product


FAULTS = {
    "top_k + 1": one_head_more,
    "top_k - 1": one_head_fewer,
    "ranked by the wrong end": ranked_by_the_wrong_end,
    "shared and routed swapped": shared_and_routed_swapped,
    "logits of two heads swapped": two_heads_swapped,
    "stages swapped": stages_swapped,
    "softmax twice": softmax_twice,
    "not renormalised": not_renormalised,
    "gate mode flipped": gate_mode_flipped,
    "logits of another layer": reads_another_layers_logits,
    "router before the norm": reads_before_the_norm,
    "router reads the values": reads_the_values,
}
