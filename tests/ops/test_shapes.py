"""The shape rules: types of outputs, and what is refused."""

from collections.abc import Mapping

import pytest

from moh_deploy.errors import ExportError
from moh_deploy.ops import OPS, TensorType

AGGREGATED, ATTENTION = "MoHAggregatedAttention", "MoHAttention"
ROUTER, TOKEN_CONV, MATMUL_NBITS = "MoHRouter", "MoHTokenConv", "MoHMatMulNBits"
QUERY, OUTPUT = "MoHQueryProjection", "MoHOutputProjection"
PROJECTIONS, NBITS = (QUERY, OUTPUT), (f"{QUERY}NBits", f"{OUTPUT}NBits")

# A node of each op: names and types of its inputs. A size may be a name, or ? where it is unknown.
TYPES = {
    AGGREGATED: "Q=[batch,35,12] K=[batch,35,12] V=[batch,35,12] pooled_K=[batch,4,12]"
    " pooled_V=[batch,4,12] gates=[batch,35,3] query_embedding=[3,4] query_scale=[3,35]"
    " window_bias=[3,15] pooled_bias=[3,35,4] window_tokens=[3,4,15] window_offset=[3,15]",
    ATTENTION: "Q=[batch,seq,24] K=[batch,past+seq,8] V=[batch,past+seq,6] gates=[batch,seq,6]",
    ROUTER: "routed_logits=[batch,seq,7]",
    TOKEN_CONV: "X=[batch,12,6] W=[6,1,3,5]",
    **dict.fromkeys(PROJECTIONS, "X=[batch,seq,12] W=[12,15] gates=[batch,seq,3] bias=[15]"),
    MATMUL_NBITS: "X=[batch,tokens,40] W=uint8[12,2,32] scales=[12,2]",
    **dict.fromkeys(
        NBITS, "X=[batch,tokens,40] W=uint8[12,2,16] gates=[batch,?,4] scales=[12,2] bias=[12]"
    ),
}
FEATURES = {"in_features": 40, "out_features": 12}
ATTRIBUTES: dict[str, Mapping[str, object]] = {
    AGGREGATED: {"num_heads": 3, "height": 5, "width": 7, "kernel_height": 3, "kernel_width": 5},
    ATTENTION: {"q_num_heads": 6, "kv_num_heads": 2, "scale": 0.5},
    ROUTER: {"top_k": 2},
    TOKEN_CONV: {"channels": 6, "height": 3, "width": 4},
    **{key: {"num_heads": 3} for key in PROJECTIONS},
    MATMUL_NBITS: {**FEATURES, "bits": 8},
    **{key: {**FEATURES, "num_heads": 4} for key in NBITS},
}
BY_HEADS = "Q=[2,6,5,4] K=[2,2,9,4] V=[2,2,9,3] gates=[2,5,6]"
SHARED, STAGE = "shared_logits=[batch,seq,3]", "stage_logits=[batch,seq,2]"
UNKNOWN = " ".join(
    f"{name}=[{','.join('?' * (shape.count(',') + 1))}]"
    for name, shape in (given.split("=") for given in TYPES[AGGREGATED].split())
)


def type_of(text: str) -> TensorType | None:
    """Read `float16[batch,?,7]`; float32 where there is no dtype, None for `absent`."""
    dtype, _, sizes = text.rstrip("]").partition("[")
    dims = [int(n) if n.isdigit() else None if n == "?" else n for n in sizes.split(",") if n]
    return None if text == "absent" else TensorType(dtype or "float32", tuple(dims))


def infer(op: str, change: str = "", **attributes: object) -> TensorType:
    """The type of the output of a node whose inputs are as in TYPES, but for those changed."""
    types = {n: type_of(t) for n, t in (g.split("=") for g in f"{TYPES[op]} {change}".split())}
    inputs = [types.get(given.name) for given in OPS[op].inputs]
    return OPS[op].shape_rule(inputs, OPS[op].complete({**ATTRIBUTES[op], **attributes}))[0]


@pytest.mark.parametrize(
    ("op", "change", "attributes", "expected"),
    [
        (AGGREGATED, "", {}, "[batch,35,12]"),
        *(
            (AGGREGATED, f"{given.name}=absent", {}, "[batch,35,12]")
            for given in OPS[AGGREGATED].inputs
            if given.optional
        ),
        # Sizes come from the attributes, or from any input that knows them.
        (AGGREGATED, UNKNOWN, {}, "[?,35,?]"),
        (AGGREGATED, f"{UNKNOWN} K=[batch,35,12]", {}, "[batch,35,12]"),
        (AGGREGATED, f"{UNKNOWN} pooled_V=[batch,4,12]", {}, "[batch,35,12]"),
        (AGGREGATED, f"{UNKNOWN} query_embedding=[3,4]", {}, "[?,35,12]"),
        (AGGREGATED, f"{UNKNOWN} window_tokens=[3,4,15]", {}, "[?,35,12]"),
        (ATTENTION, "", {}, "[batch,seq,18]"),
        (ATTENTION, BY_HEADS, {}, "[2,6,5,3]"),
        (ATTENTION, "Q=[?,?,?] V=[?,?,?]", {}, "[batch,seq,?]"),
        (ATTENTION, "Q=[?,s,24] gates=[?,7,6]", {}, "[batch,7,18]"),
        # Masks that broadcast to the scores, and lengths of sequences.
        (ATTENTION, "attn_mask=bool[past+seq]", {}, "[batch,seq,18]"),
        (ATTENTION, "attn_mask=bool[seq,past+seq]", {}, "[batch,seq,18]"),
        (ATTENTION, "attn_mask=float16[6,1,past+seq]", {}, "[batch,seq,18]"),
        (ATTENTION, "attn_mask=[1,6,1,1]", {}, "[batch,seq,18]"),
        *((ATTENTION, f"{BY_HEADS} nonpad_kv_seqlen=int64[{n}]", {}, "[2,6,5,3]") for n in "2b?"),
        *((ATTENTION, f"{BY_HEADS} key_ranges=int64[{n},5,2]", {}, "[2,6,5,3]") for n in "12b?"),
        (ROUTER, "", {}, "[batch,seq,7]"),
        (ROUTER, f"{SHARED} {STAGE}", {"num_shared_heads": 3}, "[batch,seq,10]"),
        (
            ROUTER,
            f"routed_logits=absent {SHARED}",
            {"top_k": 0, "num_shared_heads": 3},
            "[batch,seq,3]",
        ),
        (
            ROUTER,
            f"routed_logits=absent {STAGE}",
            {"top_k": 0, "num_shared_heads": 5},
            "[batch,seq,5]",
        ),
        (ROUTER, f"routed_logits=[?,4,?] {SHARED}", {"num_shared_heads": 3}, "[batch,4,?]"),
        (TOKEN_CONV, "bias=[6]", {}, "[batch,12,6]"),
        (TOKEN_CONV, "X=[batch,12,12]", {"gated": 1}, "[batch,12,6]"),
        (TOKEN_CONV, "X=[?,?,?] W=[?,1,?,?]", {}, "[?,12,6]"),
        *((op, "", {}, "[batch,seq,15]") for op in PROJECTIONS),
        *((op, "bias=absent", {}, "[batch,seq,15]") for op in PROJECTIONS),
        *((op, "X=[?,?,?] W=[?,?] gates=[2,7,?]", {}, "[2,7,15]") for op in PROJECTIONS),
        # Heads divide the columns of a query projection, and the rows of an output projection.
        (QUERY, "X=[1,2,10] W=[10,15] gates=[1,2,3]", {}, "[1,2,15]"),
        (OUTPUT, "X=[1,2,15] W=[15,10] gates=[1,2,3] bias=absent", {}, "[1,2,10]"),
        (MATMUL_NBITS, "", {}, "[batch,tokens,12]"),
        *((op, "", {}, "[batch,tokens,12]") for op in NBITS),
        *((op, "bias=absent", {}, "[batch,tokens,12]") for op in NBITS),
    ],
)
def test_output_has_this_type(op: str, change: str, attributes: dict, expected: str):
    assert infer(op, change, **attributes) == type_of(expected)


@pytest.mark.parametrize("op", [AGGREGATED, ATTENTION, ROUTER, TOKEN_CONV, *PROJECTIONS])
def test_output_has_the_dtype_of_the_first_input(op: str):
    assert infer(op, TYPES[op].replace("=", "=bfloat16")).dtype == "bfloat16"


def test_trailing_absent_inputs_need_not_be_named():
    for op, required in ((AGGREGATED, 6), (QUERY, 3), (NBITS[0], 4)):
        inputs = [type_of(given.split("=")[1]) for given in TYPES[op].split()[:required]]
        complete = OPS[op].complete(ATTRIBUTES[op])
        assert OPS[op].shape_rule(inputs, complete)[0] == infer(op)


REFUSED = {
    AGGREGATED: [
        ("Q=absent", "input 'Q' is absent; it is required"),
        ("gates=absent", "input 'gates' is absent; it is required"),
        ("Q=float64[2,35,12]", "Q has dtype float64; expected float32 or"),
        ("K=float16[2,35,12]", "K has dtype float16; expected float32"),
        ("window_bias=float16[3,15]", "window_bias has dtype float16; expected float32"),
        ("Q=[2,3,35,4]", r"Q has rank 4, shape \[2, 3, 35, 4\]; expected rank 3"),
        ("pooled_bias=[35,4]", "pooled_bias has rank 2, .*; expected rank 3"),
        ("Q=[2,35,13]", "last size of Q, K and V is 13; expected a multiple of the 3"),
        ("Q=[2,36,12]", r"number of tokens \(height \* width\) of Q is 36; expected 35"),
        ("K=[2,4,12]", "number of tokens .* of K is 4; expected 35"),
        ("V=[2,35,15]", "last size of V is 15; expected 12"),
        ("K=[2,35,12] V=[3,35,12]", "batch size of V is 3; expected 2"),
        ("pooled_V=[2,5,12]", "number of pooled tokens of pooled_V is 5; expected 4"),
        ("pooled_K=[2,0,12]", "pooled_K has no tokens; expected at least 1"),
        ("pooled_K=[2,4,15]", "last size of pooled_K is 15; expected 12"),
        ("gates=[2,35,2]", "number of heads of gates is 2; expected 3"),
        ("gates=[2,3,35]", "number of tokens .* of gates is 3; expected 35"),
        ("query_embedding=[3,5]", "head size of query_embedding is 5; expected 4"),
        ("query_scale=[35,3]", "number of heads of query_scale is 35; expected 3"),
        ("query_scale=[3,1]", "number of tokens .* of query_scale is 1; expected 35"),
        ("window_bias=[3,9]", "number of window places of window_bias is 9; expected 15"),
        ("pooled_bias=[3,35,5]", "number of pooled tokens of pooled_bias is 5; exp"),
        ("window_tokens=[3,15,4]", "head size of window_tokens is 15; expected 4"),
        ("window_offset=[1,15]", "number of heads of window_offset is 1; expected 3"),
        ({"num_heads": 0}, "num_heads is 0; expected at least 1"),
        ({"height": 0}, "height is 0; expected at least 1"),
        ({"width": -7}, "width is -7; expected at least 1"),
        ({"kernel_height": 4}, "kernel_height is 4; expected an odd number"),
        ({"kernel_width": -3}, "kernel_width is -3; expected at least 1"),
        ({"normalize": 2}, "normalize is 2; expected 0 or 1"),
        ({"epsilon": 0.0}, "epsilon is 0.0; expected more than 0"),
        ({"epsilon": float("nan")}, "epsilon is nan; expected more than 0"),
        ({"height": 7, "width": 7}, "number of tokens .* of Q is 35; expected 49"),
    ],
    ATTENTION: [
        ("Q=absent", "input 'Q' is absent"),
        ("gates=absent", "input 'gates' is absent"),
        ("Q=int64[2,5,24]", "Q has dtype int64; expected float32 or"),
        ("K=float16[2,9,8]", "K has dtype float16; expected float32"),
        ("gates=bool[2,5,6]", "gates has dtype bool; expected float32"),
        ("Q=[5,24]", r"Q has rank 2, shape \[5, 24\]; expected rank 3 or 4"),
        ("K=[2,2,9,4]", "K has rank 4, .*; expected rank 3"),
        ("gates=[2,5]", "gates has rank 2"),
        ("Q=[2,5,25]", "last size of Q is 25; expected a multiple of its 6 heads"),
        ("K=[2,9,10]", "head size of K is 5; expected 4"),
        ("Q=[2,5,24] K=[3,9,8]", "batch size of K is 3; expected 2"),
        ("K=[2,9,8] V=[2,8,6]", "length of V is 8; expected 9"),
        ("gates=[2,5,2]", "number of heads in gates is 2; expected 6"),
        ("Q=[2,5,24] gates=[2,4,6]", "length of gates is 4; expected 5"),
        (f"{BY_HEADS} K=[2,6,9,4]", "number of heads in K is 6; expected 2"),
        (f"{BY_HEADS} attn_mask=int32[5,9]", "attn_mask has dtype int32"),
        (f"{BY_HEADS} attn_mask=[]", "attn_mask has rank 0"),
        (
            f"{BY_HEADS} attn_mask=[2,5,9]",
            r"attn_mask of shape \[2, 5, 9\] does not broadcast to the scores \[2, 6, 5, 9\]",
        ),
        (f"{BY_HEADS} nonpad_kv_seqlen=int32[2]", "nonpad_kv_seqlen has dtype int32; exp.* int64"),
        (f"{BY_HEADS} nonpad_kv_seqlen=int64[2,1]", "nonpad_kv_seqlen has rank 2, .* rank 1"),
        (f"{BY_HEADS} nonpad_kv_seqlen=int64[3]", "batch size of nonpad_kv_seqlen is 3; exp.* 2"),
        (f"{BY_HEADS} key_ranges=int64[3,5,2]", "batch size of key_ranges is 3; expected 2"),
        (f"{BY_HEADS} key_ranges=int64[1,4,2]", "length of key_ranges is 4; expected 5"),
        (f"{BY_HEADS} key_ranges=int64[1,5,3]", "last size of key_ranges is 3; expected 2"),
        ({"kv_num_heads": 4}, "q_num_heads is 6; expected a multiple of kv_num_heads, 4"),
        ({"kv_num_heads": 0}, "kv_num_heads is 0; expected at least 1"),
        ({"is_causal": 2}, "is_causal is 2; expected 0 or 1"),
    ],
    ROUTER: [
        ("routed_logits=absent", {"top_k": 0, "num_shared_heads": 1}, "no input is given"),
        ({"top_k": 8}, "top_k is 8; expected at most the 7 heads"),
        ({"top_k": 0}, "top_k is 0, but routed_logits is given"),
        ({"num_shared_heads": -1}, "num_shared_heads is -1; expected 0 or more"),
        ({"gate_mode": "soft"}, "gate_mode is 'soft'; expected weighted or mask"),
        (
            f"routed_logits=absent {SHARED}",
            {"num_shared_heads": 3},
            "top_k is 2, but routed_logits is absent",
        ),
        (f"routed_logits=absent {STAGE}", {"top_k": 0}, "neither routed nor shared heads"),
        (SHARED, "shared_logits is given, but num_shared_heads is 0"),
        (SHARED, {"num_shared_heads": 4}, "last size of shared_logits is 3; expected 4"),
        ("stage_logits=[batch,seq,3]", "last size of stage_logits is 3; expected 2"),
        (
            SHARED,
            {"num_shared_heads": 3, "gate_mode": "mask"},
            "gate_mode is 'mask', but shared_logits is given",
        ),
        (STAGE, {"gate_mode": "mask"}, "gate_mode is 'mask', but stage_logits is given"),
        ("routed_logits=[5,7]", r"routed_logits has rank 2, shape \[5, 7\]; expected rank 3"),
        ("routed_logits=int64[1,5,7]", "routed_logits has dtype int64"),
        ("stage_logits=float16[1,5,2]", "stage_logits has dtype float16; expected float32"),
        ("routed_logits=[2,5,7] stage_logits=[2,6,2]", "length of stage_logits is 6; expected 5"),
        ("routed_logits=[2,5,7] stage_logits=[3,5,2]", "batch size of stage_logits is 3; exp.* 2"),
    ],
    TOKEN_CONV: [
        ("X=absent", "input 'X' is absent"),
        ("W=absent", "input 'W' is absent"),
        ({"height": 4}, "number of tokens of X is 12; expected 16"),
        ({"height": 0}, "height is 0; expected at least 1"),
        ({"width": -4}, "width is -4; expected at least 1"),
        ({"gated": 1}, "last size of X is 6; expected 12"),
        ({"gated": 2}, "gated is 2; expected 0 or 1"),
        ({"channels": 5}, "last size of X is 6; expected 5"),
        ({"activation": "relu"}, "activation is 'relu'; expected none or gelu"),
        ("W=[5,1,3,3]", "first size of W is 5; expected 6"),
        ("W=[6,6,3,3]", "second size of W is 6; expected 1"),
        ("W=[6,1,2,3]", "kernel height is 2; expected an odd number"),
        ("W=[6,1,3,4]", "kernel width is 4; expected an odd number"),
        ("bias=[5]", "size of bias is 5; expected 6"),
        ("bias=[6,1]", r"bias has rank 2, shape \[6, 1\]; expected rank 1"),
        ("input_bias=[12]", "size of input_bias is 12; expected 6"),
        ("input_bias=[1,1,6]", "input_bias has rank 3"),
        ("X=[12,6]", r"X has rank 2, shape \[12, 6\]; expected rank 3"),
        ("W=float16[6,1,3,5]", "W has dtype float16; expected float"),
        ("X=int64[batch,12,6]", "X has dtype int64"),
    ],
    **{
        key: [
            ("X=absent", "input 'X' is absent"),
            ("W=absent", "input 'W' is absent"),
            ("gates=absent", "input 'gates' is absent"),
            ("X=[5,12]", r"X has rank 2, shape \[5, 12\]; expected rank 3"),
            ("W=[1,12,15]", "W has rank 3"),
            ("gates=[7,3]", "gates has rank 2"),
            ("bias=[1,15]", "bias has rank 2"),
            ("X=int64[2,7,12]", "X has dtype int64; expected float32 or"),
            ("W=float16[12,15]", "W has dtype float16; expected float32"),
            ("gates=bool[2,7,3]", "gates has dtype bool; expected float32"),
            ("W=[13,15]", "number of rows of W is 13; expected 12|rows of W is 13; expected a"),
            ("gates=[batch,seq,4]", "number of heads in gates is 4; expected 3"),
            ("bias=[14]", "size of bias is 14; expected 15"),
            ("X=[2,7,12] gates=[3,7,3]", "batch size of gates is 3; expected 2"),
            ("X=[2,7,12] gates=[2,8,3]", "length of gates is 8; expected 7"),
            ({"num_heads": 0}, "num_heads is 0; expected at least 1"),
            ({"num_heads": -3}, "num_heads is -3; expected at least 1"),
        ]
        for key in PROJECTIONS
    },
    MATMUL_NBITS: [
        ("X=float16[1,2,40]", "X has dtype float16; expected float32"),
        ("X=[40]", "X has rank 1"),
        ("X=[1,2,41]", "last size of X is 41; expected 40"),
        ("W=uint8[12,2,16]", "bytes of a block of W is 16; expected 32"),
        ("W=uint8[12,1,32]", "blocks of W is 1; expected 2"),
        ("scales=[11,2]", "columns of scales is 11; expected 12"),
        ("scales=absent", "input 'scales' is absent"),
        ({"bits": 2}, "bits is 2; expected 4 or 8"),
    ],
    NBITS[0]: [
        ("X=float16[b,s,40]", "X has dtype float16; expected float32"),
        ("X=[b,s,41]", "last size of X is 41; expected 40"),
        ("W=int8[12,2,16]", "W has dtype int8; expected uint8"),
        ("W=uint8[12,3,16]", "number of blocks of W is 3; expected 2"),
        ("W=uint8[12,2,32]", "number of bytes of a block of W is 32"),
        ("gates=[b,s,3]", "number of heads in gates is 3"),
        ("scales=[12,1]", "number of blocks of scales is 1"),
        ("bias=[11]", "size of bias is 11; expected 12"),
        ("scales=absent", "input 'scales' is absent"),
        ({"num_heads": 5}, "out_features is 12; expected a multiple of its 5 heads"),
    ],
    NBITS[1]: [({"num_heads": 3}, "in_features is 40; expected a multiple of its 3 heads")],
}
OF_ROWS = "X=[1,2,15] W=[15,10] gates=[1,2,3] bias=absent", "columns of W is 10; expected a mult"
OF_COLUMNS = "X=[1,2,10] W=[10,15] gates=[1,2,3]", "rows of W is 10; expected a multiple of its 3"


@pytest.mark.parametrize(
    ("op", "row"),
    [
        *((op, row) for op, rows in REFUSED.items() for row in rows),
        (QUERY, OF_ROWS),
        (OUTPUT, OF_COLUMNS),
    ],
)
def test_what_does_not_fit_is_refused(op: str, row: tuple):
    *changes, message = row
    types = " ".join(change for change in changes if isinstance(change, str))
    attributes = next((change for change in changes if isinstance(change, dict)), {})
    with pytest.raises(ExportError, match=f"{op}: (.*({message}))"):
        infer(op, types, **attributes)
