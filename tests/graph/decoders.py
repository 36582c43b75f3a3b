"""Small decoders whose caches grow, as ONNX models with manifest and runs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper, parser

from moh_deploy.graph.choose_layers import ops_of
from moh_deploy.graph.load_model import add_function_bodies, infer_types
from moh_deploy.package import Manifest, OnnxPackage, PackageWriter, TensorInfo, VectorSet
from moh_deploy.system.npz import Array
from tests.handmade_package import LAYER as HANDMADE
from tests.handmade_package import MANIFEST as OTHER
from tests.true_manifest import finish_true

WIDTH, HEADS, KV_HEADS, HEAD_DIM, VOCAB, POSITIONS = 16, 4, 2, 4, 11, 64

CACHE = f"float[batch, {KV_HEADS}, past, {HEAD_DIM}]"
GROWN = f"float[batch, {KV_HEADS}, grown, {HEAD_DIM}]"

LENGTHS = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first = Constant <value_ints = [0]> ()
    second = Constant <value_ints = [1]> ()
    both = Constant <value_ints = [0, 1]> ()
    middle = Constant <value_ints = [1, 2]> ()
    cached = Shape <start = 2, end = 3> (past_key)
    new = Shape <start = 1, end = 2> (ids)
    p = Squeeze (cached)
    s = Squeeze (new)
    t = Add (p, s)
    here = Range (p, t, one)
    all = Range (zero, t, one)
"""
"""How many tokens were there before, and the positions of the new and of all."""

CAUSAL = """
    rows = Unsqueeze (here, second)
    columns = Unsqueeze (all, first)
    behind = LessOrEqual (columns, rows)
    visible = Unsqueeze (behind, both)
"""
MASKED = f"""
    {CAUSAL}
    valid = Unsqueeze (mask, middle)
    seen = And (visible, valid)
"""
WINDOW = f"""
    {CAUSAL}
    three = Constant <value_int = 3> ()
    reach = Sub (rows, three)
    near = Greater (columns, reach)
    nearby = Unsqueeze (near, both)
    seen = And (visible, nearby)
"""
LAYER = f"""
    split_q = Constant <value_ints = [0, 0, {HEADS}, {HEAD_DIM}]> ()
    split_k = Constant <value_ints = [0, 0, {KV_HEADS}, {HEAD_DIM}]> ()
    merged = Constant <value_ints = [0, 0, {WIDTH}]> ()
    words = Gather (table, ids)
    places = Gather (positions, here)
    x = Add (words, places)
    flat_q = MatMul (x, wq)
    flat_k = MatMul (x, wk)
    flat_v = MatMul (x, wv)
    by_head_q = Reshape (flat_q, split_q)
    by_head_k = Reshape (flat_k, split_k)
    by_head_v = Reshape (flat_v, split_k)
    q = Transpose <perm = [0, 2, 1, 3]> (by_head_q)
    k = Transpose <perm = [0, 2, 1, 3]> (by_head_k)
    v = Transpose <perm = [0, 2, 1, 3]> (by_head_v)
    present_key = Concat <axis = 2> (past_key, k)
    present_value = Concat <axis = -2> (past_value, v)
    logits_of_gates = MatMul (x, wg)
    open = Sigmoid (logits_of_gates)
    attended = moh.MoHAttention <q_num_heads = {HEADS}, kv_num_heads = {KV_HEADS}, scale = 0.5,
        is_causal = 0> (q, present_key, present_value, open, seen)
    tokens = Transpose <perm = [0, 2, 1, 3]> (attended)
    y = Reshape (tokens, merged)
"""


def decoder(mask: str = MASKED, layer: str = LAYER, *, with_mask: bool = True) -> ir.Model:
    """Return a decoder of one layer: ids [B, S], the mask [B, T] and a cache in, y and it out."""
    masks = "bool[batch, total] mask, " if with_mask else ""
    text = f"""
        <ir_version: 10, opset_import: ["" : 20, "moh" : 1]>
        decoder (int64[batch, seq] ids, {masks}{CACHE} past_key, {CACHE} past_value)
        => (float[batch, seq, {WIDTH}] y, {GROWN} present_key, {GROWN} present_value)
        {{ {LENGTHS} {mask} {layer} }}
    """
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    shapes = {
        "table": (VOCAB, WIDTH),
        "positions": (POSITIONS, WIDTH),
        "wq": (WIDTH, HEADS * HEAD_DIM),
        "wk": (WIDTH, KV_HEADS * HEAD_DIM),
        "wv": (WIDTH, KV_HEADS * HEAD_DIM),
        "wg": (WIDTH, HEADS),
    }
    for name, shape in shapes.items():
        weight = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    model: ir.Model = ir.from_proto(proto)
    for node in model.graph:
        node.name = node.outputs[0].name
    _bodies(model)
    return model


def _bodies(model: ir.Model) -> None:
    # Nothing infers the type of a node without a body, and no body is chosen without types. Nor is
    # it inferred that there are as many places as new tokens; exporters write it down.
    for node in model.graph:
        if node.name == "x":
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[0].shape = ir.Shape(["batch", "seq", WIDTH])
        if node.domain == "moh":
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            node.outputs[0].shape = ir.Shape(["batch", HEADS, "seq", HEAD_DIM])
    infer_types(model)
    add_function_bodies(model, opset=20)
    infer_types(model)


def opened(model: ir.Model, *more: str) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """Return what runs function bodies as they are written; `more` are inner values."""
    proto = ir.to_proto(model)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it warns of buffers that are not bound in place
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [item.name for item in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True))


def inputs(
    *, batch: int, seq: int, past: int, seed: int = 0, padding: int = 0, with_mask: bool = True
) -> dict[str, Array]:
    """Return inputs whose first sequence begins with padding."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, past + seq), bool)
    mask[0, :padding] = False
    shape = (batch, KV_HEADS, past, HEAD_DIM)
    caches = {
        name: rng.standard_normal(shape).astype(np.float32) for name in ("past_key", "past_value")
    }
    ids = rng.integers(0, VOCAB, (batch, seq))
    return {"ids": ids} | ({"mask": mask} if with_mask else {}) | caches


SIZES = ((2, 3, 5), (3, 4, 6), (1, 1, 1), (2, 3, 0))
"""Batch, new and cached tokens of recorded runs, as an export records them."""


def recorded(model: ir.Model, *, with_mask: bool = True) -> tuple[Manifest, list[VectorSet]]:
    """Return what a package says of a decoder, and runs of it."""
    run = opened(model, "open")
    runs = []
    for seed, (batch, seq, past) in enumerate(SIZES):
        feeds = inputs(
            batch=batch, seq=seq, past=past, seed=seed, padding=past > 2, with_mask=with_mask
        )
        results = run(feeds)
        gates = results.pop("open")
        sizes = {"batch": batch, "seq": seq, "past": past}
        sizes |= {"total": past + seq} if with_mask else {}
        margins = np.full(gates.shape[:-1], np.inf, np.float32)
        runs.append(VectorSet(sizes, feeds, results, (gates,), (margins,)))
    cache = ("batch", KV_HEADS, "past", HEAD_DIM)
    grown = ("batch", KV_HEADS, "past + seq", HEAD_DIM)
    mask = (TensorInfo("mask", "bool", ("batch", "total")),) if with_mask else ()
    layer = replace(
        HANDMADE,
        path="layer",
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        node="attended",
        gates="open",
    )
    manifest = replace(
        OTHER,
        inputs=(
            TensorInfo("ids", "int64", ("batch", "seq")),
            *mask,
            TensorInfo("past_key", "float32", cache),
            TensorInfo("past_value", "float32", cache),
        ),
        outputs=(
            TensorInfo("y", "float32", ("batch", "seq", WIDTH)),
            TensorInfo("present_key", "float32", grown),
            TensorInfo("present_value", "float32", grown),
        ),
        dims=runs[0].sizes,
        layers=(layer,),
        proof=None,
    )
    return manifest, runs


def write_decoder(
    output: Path, model: ir.Model | None = None, *, manifest: Manifest | None = None
) -> OnnxPackage:
    """Write a decoder that grows its caches as a package.

    Args:
        manifest: In place of its own.
    """
    known, runs = recorded(decoder())
    model = model or decoder()
    with PackageWriter(output) as writer:
        ir.save(model, writer.path("model.onnx"))
        return finish_true(writer, replace(manifest or known, ops=ops_of(model)), runs)
