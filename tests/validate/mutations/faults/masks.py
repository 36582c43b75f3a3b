"""What hides keys or moves scores: left out, shifted, or causal where it must not be."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.validate.mutations.site import DoesNotApplyError, Site

_WINDOW_BIAS, _POOLED_BIAS = 8, 9


_HIDDEN = -30.0
"""What is added to the score of a hidden key is below this: its weight is 1e-13 of another's."""


def mask_dropped(site: Site) -> None:
    """Every key is seen."""
    _dropped(site, _added(site, hides_keys=True))


def bias_dropped(site: Site) -> None:
    """No bias of positions is added to the scores."""
    _dropped(site, _added(site, hides_keys=False))


def mask_shifted(site: Site) -> None:
    """Each key is hidden as the one before it should be."""
    value, attention = _added(site, hides_keys=True), site.attention()
    attention.input[4] = _shifted(site, value, attention)


def bias_shifted(site: Site) -> None:
    """Each key has the bias of the one before."""
    value, attention = _added(site, hides_keys=False), site.attention()
    attention.input[4] = _shifted(site, value, attention)


def _added(site: Site, *, hides_keys: bool) -> str:
    """Return the mask, or the bias, that attention reads beside queries, keys and values."""
    attention = site.attention()
    if attention.op_type != "MoHAttention" or len(attention.input) < 5 or not attention.input[4]:
        raise DoesNotApplyError("no mask")
    value = attention.input[4]
    array = site.evaluate(value)
    if hides_keys != (array.dtype == bool or bool((array < _HIDDEN).any())):
        raise DoesNotApplyError("a bias, no mask" if hides_keys else "a mask, no bias")
    return value


def _dropped(site: Site, value: str) -> None:
    attention = site.attention()
    is_bool = site.evaluate(value).dtype == bool
    kind, number = (TensorProto.BOOL, [True]) if is_bool else (TensorProto.FLOAT, [0.0])
    shape = site.add("Shape", [value], attention)
    neutral = helper.make_tensor("neutral", kind, [1], number)
    attention.input[4] = site.add("ConstantOfShape", [shape], attention, value=neutral)


def _shifted(site: Site, value: str, before: onnx.NodeProto) -> str:
    first, last, end, axis = (
        site.put_constant(np.asarray([n], np.int64), "place") for n in (0, -1, 2**62, -1)
    )
    tail = site.add("Slice", [value, last, end, axis], before)
    front = site.add("Slice", [value, first, last, axis], before)
    return site.add("Concat", [tail, front], before, axis=-1)


def window_bias_dropped(site: Site) -> None:
    """The windowed keys have no position bias."""
    _bias_dropped(site, _WINDOW_BIAS)


def pooled_bias_dropped(site: Site) -> None:
    """The pooled keys have no position bias."""
    _bias_dropped(site, _POOLED_BIAS)


def _bias_dropped(site: Site, place: int) -> None:
    attention = site.attention()
    if attention.op_type != "MoHAggregatedAttention" or not attention.input[place]:
        raise DoesNotApplyError("no such bias")
    shape = site.add("Shape", [attention.input[place]], attention)
    attention.input[place] = site.add("ConstantOfShape", [shape], attention)


def causal_flag_flipped(site: Site) -> None:
    """A causal layer sees the future, or another one does not see it: by attribute and body."""
    attention = site.attention()
    if attention.op_type != "MoHAttention":
        raise DoesNotApplyError("no causal flag")
    was = site.attribute(attention, "is_causal")
    body = site.own_body(attention)
    makers = {node.output[0]: node for node in body.node}
    if was:
        mask = makers.get("in_reach")
        if mask is None:
            raise DoesNotApplyError("another body")
        mask.output[0] = "planted_seen"
        zero = onnx.parser.parse_function(
            """<domain: "moh", opset_import: ["" : 20]> f (planted_seen) => (in_reach) {
                in_reach = Or (planted_seen, planted_unseen)
            }"""
        ).node[0]
        negated = helper.make_node("Not", ["planted_seen"], ["planted_unseen"])
        at = list(body.node).index(mask) + 1
        body.node.insert(at, negated)
        body.node.insert(at + 1, zero)
    else:
        scores = makers.get("scores")
        if scores is None or (len(attention.input) > 4 and attention.input[4]):
            raise DoesNotApplyError("a mask says who sees whom")
        scores.output[0] = "planted_scores"
        added = onnx.parser.parse_function(
            """<domain: "moh", opset_import: ["" : 20]> f (planted_scores) => (scores) {
                planted_shape = Shape (planted_scores)
                planted_ones = ConstantOfShape <value = float[1] {-inf}> (planted_shape)
                planted_len = Shape <start = -1> (planted_scores)
                planted_rows = Shape <start = -2, end = -1> (planted_scores)
                planted_gap = Sub (planted_len, planted_rows)
                planted_one = Constant <value_ints = [1]> ()
                planted_first = Add (planted_gap, planted_one)
                planted_axis = Constant <value_ints = [0]> ()
                planted_k = Squeeze (planted_first, planted_axis)
                planted_future = Trilu <upper = 1> (planted_ones, planted_k)
                scores = Add (planted_scores, planted_future)
            }"""
        ).node
        at = list(body.node).index(scores) + 1
        for offset, node in enumerate(added):
            body.node.insert(at + offset, node)
    for item in attention.attribute:
        if item.name == "is_causal":
            item.i = 1 - was


FAULTS = {
    "mask dropped": mask_dropped,
    "mask shifted": mask_shifted,
    "bias dropped": bias_dropped,
    "bias shifted": bias_shifted,
    "window bias dropped": window_bias_dropped,
    "pooled bias dropped": pooled_bias_dropped,
    "causal flag flipped": causal_flag_flipped,
}
