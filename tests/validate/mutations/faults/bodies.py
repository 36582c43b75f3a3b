"""Body and kernel say different things: a fault that only one of them has."""

import onnx
from onnx import helper

from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain
from tests.validate.mutations.site import DoesNotApplyError, Site


def _insert_behind(body: onnx.FunctionProto, value: str, op_type: str, number: float) -> None:
    """Let a value of a body be computed with a constant besides."""
    maker = next((node for node in body.node if value in node.output), None)
    if maker is None:
        raise DoesNotApplyError(f"the body has no {value}")
    maker.output[list(maker.output).index(value)] = "planted_raw"
    constant = helper.make_node("Constant", [], ["planted_number"], value_float=number)
    node = helper.make_node(op_type, ["planted_raw", "planted_number"], [value])
    at = list(body.node).index(maker) + 1
    body.node.insert(at, constant)
    body.node.insert(at + 1, node)


def body_scale(site: Site) -> None:
    """The body's scores are 1 % too large; the kernel's are right."""
    attention = site.attention()
    value = "score_query" if attention.op_type == "MoHAggregatedAttention" else "query"
    _insert_behind(site.own_body(attention), value, "Mul", 1.01)


def body_gates(site: Site) -> None:
    """The body of attention reads gates 1 % too large; the kernel does not."""
    _insert_behind(site.own_body(site.attention()), "gate", "Mul", 1.01)


def body_ranks_by_the_wrong_end(site: Site) -> None:
    """The body of the router takes the worst heads; the kernel takes the best."""
    router = site.router()
    site.routed_logits()
    for node in site.own_body(router).node:
        for item in node.attribute:
            if node.op_type == "TopK" and item.name == "largest":
                item.i = 0


def body_softmax_sharper(site: Site) -> None:
    """The body of the router has logits 2 % too large; the kernel's are right."""
    router = site.router()
    site.routed_logits()
    _insert_behind(site.own_body(router), "logits", "Mul", 1.02)


def _fixed(body: onnx.FunctionProto, attribute: str, value: float) -> None:
    """Let a body hold the number that it took from the node."""
    for node in body.node:
        for index, item in enumerate(node.attribute):
            if item.ref_attr_name == attribute:
                del node.attribute[index]
                node.attribute.append(helper.make_attribute(item.name, value))
                break


def kernel_scale(site: Site) -> None:
    """The kernel's scores are 10 % too large: the node says so, and the body does not ask it."""
    attention = site.attention()
    if attention.op_type != "MoHAttention" or base_domain(attention.domain) != KERNEL_DOMAIN:
        raise DoesNotApplyError("no kernel with a scale")
    found = next(item for item in attention.attribute if item.name == "scale")
    _fixed(site.own_body(attention), "scale", found.f)
    found.f *= 1.1


def kernel_top_k(site: Site) -> None:
    """The kernel of the router takes a head more: the node says so, and the body does not ask."""
    router, top_k = site.router(), site.attribute(site.router(), "top_k")
    if top_k >= site.num_routed():
        raise DoesNotApplyError("all heads are chosen")
    _fixed(site.own_body(router), "top_k", top_k)
    for item in router.attribute:
        if item.name == "top_k":
            item.i += 1


def kernel_is_causal(site: Site) -> None:
    """The kernel hides the future, or shows it: the body does not read the flag."""
    attention = site.attention()
    if attention.op_type != "MoHAttention" or base_domain(attention.domain) != KERNEL_DOMAIN:
        raise DoesNotApplyError("no kernel with a causal flag")
    for item in attention.attribute:
        if item.name == "is_causal":
            item.i = 1 - item.i


SEEN_BY_KERNELS_ONLY = {
    "kernel: scale + 10 %": kernel_scale,
    "kernel: top_k + 1": kernel_top_k,
    "kernel: causal flag": kernel_is_causal,
}

FAULTS = {
    "body: scale + 1 %": body_scale,
    "body: gates + 1 %": body_gates,
    "body: ranked by the wrong end": body_ranks_by_the_wrong_end,
    "body: logits + 2 %": body_softmax_sharper,
    **SEEN_BY_KERNELS_ONLY,
}
