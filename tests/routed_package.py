"""Packages of three MoH layers, made by hand, and what can be wrong with the middle one.

Each layer has two shared and four routed heads, of which a token chooses two; its router reads the
queries before RoPE. (The norm of a query is the same behind RoPE: a router that reads norms alone
could not tell.) The reference is what the right model computes without optimisations.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from moh_deploy.ops.attention_function import AttentionVariant, function_body
from moh_deploy.ops.onnx_schema import make_node
from moh_deploy.package import (
    LayerRounding,
    OnnxPackage,
    PackageWriter,
    Rounding,
    Spread,
    TensorInfo,
    VectorSet,
    fingerprint,
)
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.open_runner import open_runner
from moh_deploy.system.npz import Array
from tests.handmade_package import LAYER, MANIFEST
from tests.true_manifest import finish_true

SHARED, ROUTED, TOP_K, HEAD_DIM = 2, 4, 2, 4
HEADS = SHARED + ROUTED
WIDTH, SEQ, DEPTH = HEADS * HEAD_DIM, 7, 3

Fault = Literal[
    "swapped shared and routed heads",
    "wrong scale",
    "softmax after top-k",
    "missing renormalisation",
    "one gate off by 1 %",
    "RoPE before the router",
    "dropped mask",
    "float16 scores",
    "top_k off by one",
    "stale weights",
    "other tie order",  # which is legal
]

ROUNDING = LayerRounding(Spread(5e-8, 2e-7), Spread(4e-7, 3e-6), Spread(4e-7, 1e-6))
"""How far rounding moves each layer, about."""

Weights = dict[str, Array]


def write_routed(
    output: Path,
    fault: Fault | None = None,
    *,
    tied: bool = False,
    batch: int = 3,
    has_scores: bool = True,
    stale_weights: bool = False,
) -> OnnxPackage:
    """Write the package; `tied` makes the scores of two routed heads equal everywhere.

    `stale_weights` plants this fault beside the other.
    """
    weights = _weights(tied=tied)
    right = output.with_suffix(".onnx")
    onnx.save(_model(weights, None), right)
    recorded = _record(right, batch)
    if not has_scores:  # as packages of earlier versions
        recorded = replace(recorded, scores=())
    info = TensorInfo("x", "float32", ("batch", SEQ, WIDTH))
    manifest = replace(
        MANIFEST,
        inputs=(info,),
        outputs=(replace(info, name="y"),),
        dims={"batch": batch},
        layers=tuple(
            replace(
                LAYER,
                path=f"blocks.{i}.attn",
                num_heads=HEADS,
                num_kv_heads=HEADS,
                head_dim=HEAD_DIM,
                num_shared_heads=SHARED,
                kv_len=SEQ,
                node=f"attn_{i}",
                gates=f"gates_{i}",
            )
            for i in range(DEPTH)
        ),
        rounding=Rounding({"y": Spread(5e-7, 1e-6)}, (ROUNDING,) * DEPTH),
    )
    with PackageWriter(output) as writer:
        written = _stale(weights) if stale_weights else weights
        onnx.save(_model(written, fault), writer.path("model.onnx"))
        return finish_true(writer, manifest, [recorded])


def _record(path: Path, batch: int) -> VectorSet:
    names = [f"{kind}_{i}" for kind in ("gates", "scores", "y") for i in range(DEPTH)]
    runner = open_runner(path, Variant(kernels="off", optimize=False, extra_outputs=tuple(names)))
    x = np.random.default_rng(1).standard_normal((batch, SEQ, WIDTH)).astype(np.float32)
    found = runner.run({"x": x})
    scores = [np.sort(found[f"scores_{i}"].astype(np.float64)) for i in range(DEPTH)]
    return VectorSet(
        {"batch": batch},
        {"x": x},
        {"y": found["y"]},
        tuple(found[f"gates_{i}"] for i in range(DEPTH)),
        tuple((s[..., -TOP_K] - s[..., -TOP_K - 1]).astype(np.float32) for s in scores),
        tuple(found[f"scores_{i}"] for i in range(DEPTH)),
        tuple(fingerprint(found[f"y_{i}"]) for i in range(DEPTH)),
    )


def _weights(*, tied: bool) -> Weights:
    draw = np.random.default_rng(0)
    angle = np.arange(SEQ)[:, None] * 0.7 ** np.arange(WIDTH // 2)[None]
    swap = np.kron(np.eye(WIDTH // 2), [[0, 1], [-1, 0]])
    weights = {
        "cos": np.repeat(np.cos(angle), 2, axis=1),
        "sin": np.repeat(np.sin(angle), 2, axis=1),
        "swap": swap,
    }
    for i in range(DEPTH):
        for name in ("q", "k", "v", "o"):
            weights[f"{name}_weight_{i}"] = draw.standard_normal((WIDTH, WIDTH)) * 0.2
        for name, size in (("routed", ROUTED), ("shared", SHARED), ("stage", 2)):
            weights[f"{name}_weight_{i}"] = draw.standard_normal((WIDTH, size)) * 0.3
        if tied:
            weights[f"routed_weight_{i}"][:, 1] = weights[f"routed_weight_{i}"][:, 2]
    constants = {"one": 1.0, "four": 4.0, "off": [1, 1, 1, 1.01, 1, 1]}
    floats = {**weights, **{name: np.asarray(value) for name, value in constants.items()}}
    return {name: value.astype(np.float32) for name, value in floats.items()}


def _model(weights: Weights, fault: Fault | None) -> onnx.ModelProto:
    if fault == "stale weights":
        weights = _stale(weights)
    nodes = [
        helper.make_node("Identity", ["x"], ["x_0"]),
        *(node for i in range(DEPTH) for node in _layer(i, fault if i == 1 else None)),
        helper.make_node("Identity", [f"x_{DEPTH}"], ["y"]),
    ]
    shape = ["batch", SEQ, WIDTH]
    graph = helper.make_graph(
        nodes,
        "routed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in _constants(weights).items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("moh", 1)]
    body = function_body(AttentionVariant(3, "bool", is_causal=False, grouped=False), opset=20)
    return helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)


def _stale(weights: Weights) -> Weights:
    return {**weights, "o_weight_1": weights["o_weight_1"] * np.float32(0.95)}


def _constants(weights: Weights) -> dict[str, Array]:
    integers = {"k": [TOP_K], "k+1": [TOP_K + 1], "routed": ROUTED, "last": ROUTED - 1}
    axes = {"heads_axis": [-1], "second_last": [-2], "first": [0], "second": [1]}
    axes["reversed"] = [3, 2, 1, 0]
    near = np.abs(np.subtract.outer(np.arange(SEQ), np.arange(SEQ))) < 3  # [S, S]
    return {
        **weights,
        **{name: np.asarray(value, np.int64) for name, value in {**integers, **axes}.items()},
        "mask": near,
        "no_mask": np.ones_like(near),
        "0_1": np.asarray([0, 1], np.float32),
    }


def _layer(i: int, fault: Fault | None) -> Iterator[onnx.NodeProto]:
    """x_(i+1) = x_i + MoHAttention(...) @ o."""
    x = f"x_{i}"
    for name in ("q", "k", "v"):
        yield _node("MatMul", i, [x, f"{name}_weight_{i}"], name)
    for name in ("q", "k"):
        yield from _rope(i, name)
    yield from _router(i, fault)
    scale = 0.55 if fault == "wrong scale" else 0.5
    mask = "no_mask" if fault == "dropped mask" else "mask"
    inputs = [f"q_rope_{i}", f"k_rope_{i}", f"v_{i}", f"gates_{i}", mask]
    heads = {"q_num_heads": HEADS, "kv_num_heads": HEADS}
    attention = make_node("MoHAttention", inputs, [f"y_{i}"], **heads, scale=scale, is_causal=0)
    attention.name = f"attn_{i}"
    yield attention
    yield _node("MatMul", i, [f"y_{i}", f"o_weight_{i}"], "projected")
    yield helper.make_node("Add", [x, f"projected_{i}"], [f"x_{i + 1}"])


def _rope(i: int, name: str) -> Iterator[onnx.NodeProto]:
    yield _node("MatMul", i, [f"{name}_{i}", "swap"], f"{name}_swapped")
    yield _node("Mul", i, [f"{name}_{i}", "cos"], f"{name}_cos")
    yield _node("Mul", i, [f"{name}_swapped_{i}", "sin"], f"{name}_sin")
    yield _node("Add", i, [f"{name}_cos_{i}", f"{name}_sin_{i}"], f"{name}_rope")


def _router(i: int, fault: Fault | None) -> Iterator[onnx.NodeProto]:
    """gates = concat(2 softmax(shared) stage[0], 2 p / sum of the chosen p stage[1])."""
    queries = f"q_rope_{i}" if fault == "RoPE before the router" else f"q_{i}"
    yield _node("MatMul", i, [queries, f"routed_weight_{i}"], "logits")
    for name in ("shared", "stage"):
        yield _node("MatMul", i, [f"x_{i}", f"{name}_weight_{i}"], f"{name}_logits")
        yield _node("Softmax", i, [f"{name}_logits_{i}"], f"{name}_share")
    logits = f"logits_{i}"
    if fault == "float16 scores":
        yield _node("Cast", i, [logits], "low", to=TensorProto.FLOAT16)
        yield _node("Cast", i, [f"low_{i}"], "rounded", to=TensorProto.FLOAT)
        logits = f"rounded_{i}"
    yield _node("Softmax", i, [logits], "scores")
    yield from _chosen(i, fault)
    if fault == "softmax after top-k":
        yield _node("Mul", i, [logits, f"chosen_{i}"], "kept_logits")
        yield _node("Softmax", i, [f"kept_logits_{i}"], "kept")
    else:
        yield _node("Mul", i, [f"scores_{i}", f"chosen_{i}"], "kept")
    yield _node("ReduceSum", i, [f"kept_{i}", "heads_axis"], "sum")
    divisor = "one" if fault == "missing renormalisation" else f"sum_{i}"
    yield _node("Div", i, [f"kept_{i}", divisor], "normal")
    for name, share, index in (("shared", "shared_share", "first"), ("routed", "normal", "second")):
        yield _node("Gather", i, [f"stage_share_{i}", index], f"{name}_stage", axis=-1)
        yield _node("Mul", i, [f"{share}_{i}", f"{name}_stage_{i}"], f"{name}_half")
        yield _node("Mul", i, [f"{name}_half_{i}", "four"], f"{name}_gates")
    order = ["shared", "routed"]
    order = order[::-1] if fault == "swapped shared and routed heads" else order
    off = fault == "one gate off by 1 %"
    joined = "joined" if off else "gates"
    yield _node("Concat", i, [f"{name}_gates_{i}" for name in order], joined, axis=-1)
    if off:
        yield _node("Mul", i, [f"joined_{i}", "off"], "gates")


def _chosen(i: int, fault: Fault | None) -> Iterator[onnx.NodeProto]:
    """1 for each chosen head, else 0: [B, S, R]. TopK prefers the lower index."""
    k, scores = ("k+1" if fault == "top_k off by one" else "k"), f"scores_{i}"
    if fault == "other tie order":
        yield _node("Gather", i, [scores, "reversed"], "reversed_scores", axis=-1)
        scores = f"reversed_scores_{i}"
    yield helper.make_node("TopK", [scores, k], [f"best_{i}", f"top_{i}"])
    indices = f"top_{i}"
    if fault == "other tie order":
        yield _node("Sub", i, ["last", indices], "other")
        indices = f"other_{i}"
    yield _node("OneHot", i, [indices, "routed", "0_1"], "one_hot")
    yield _node("ReduceSum", i, [f"one_hot_{i}", "second_last"], "chosen", keepdims=0)


def _node(op: str, i: int, inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [f"{output}_{i}"], **attributes)
