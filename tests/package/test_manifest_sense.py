from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moh_deploy.errors import PackageError
from moh_deploy.package import (
    CacheBuffer,
    CachesInPlace,
    Call,
    CallArgument,
    DimSum,
    LayerRounding,
    Manifest,
    Rounding,
    SizeRange,
    Spread,
    TensorInfo,
    Tuning,
)
from moh_deploy.package.manifest_sense import check_sense
from tests.handmade_package import LAYER, MANIFEST

TUNING = Tuning(
    "measured",
    "a machine",
    sizes=({"batch": 2, "seq": 3},),
    weights=(1.0,),
    layer_ms=(({"dense": 1.0, "sparse": 0.5},),),
    model_ms=({"dense": 1.0, "chosen": 0.5},),
)


def with_layer(**changed: Any) -> Manifest:
    return replace(MANIFEST, layers=(replace(LAYER, **changed),))


def with_output(dtype: str = "float32", *shape: int | str) -> Manifest:
    return replace(MANIFEST, outputs=(TensorInfo("y", dtype, shape),))


def with_tuning(**changed: Any) -> Manifest:
    return replace(MANIFEST, tuning=replace(TUNING, **changed))


CALL = Call((CallArgument(container="tuple", items=(CallArgument(input="z"),)),), {})


def with_caches(**changed: object) -> Manifest:
    """The input and output are a cache, of which `seq` says how much was filled."""
    caches = CachesInPlace((CacheBuffer("x", "y", 1),), "seq", 1)
    return replace(MANIFEST, caches=replace(caches, **changed))


NONSENSE: dict[str, tuple[Manifest, str]] = {
    "no buffers": (with_caches(buffers=()), "'caches.buffers': is empty"),
    "no input": (
        with_caches(buffers=(CacheBuffer("z", "y", 1),)),
        r"'caches.buffers\[0\].past': is 'z', expected one of 'x'",
    ),
    "no output": (
        with_caches(buffers=(CacheBuffer("x", "x", 1),)),
        r"'caches.buffers\[0\].present': is 'x', expected one of 'y'",
    ),
    "no axis": (
        with_caches(buffers=(CacheBuffer("x", "y", 3),)),
        r"'caches.buffers\[0\].axis': is 3, and 'x' has 3 axes",
    ),
    "filled": (with_caches(past_length="t - seq"), r"'caches.past_length': 't' is none of 'batch'"),
    "filled, a number": (
        with_caches(past_length="5"),
        "'caches.past_length': is '5', expected `tot",
    ),
    "filled, three terms": (
        with_caches(past_length="seq - batch - 1"),
        "'caches.past_length': is 'seq - batch - 1', expected `total - new`",
    ),
    "filled, digits": (
        with_caches(past_length=f"seq - {'9' * 5000}"),
        "'caches.past_length': '999",
    ),
    "added, two terms": (
        with_caches(new_length="seq - 1"),
        "'caches.new_length': 'seq - 1' is none of 'batch', 'seq'",
    ),
    "added": (with_caches(new_length="s"), r"'caches.new_length': 's' is none of 'batch', 'seq'"),
    "most": (with_caches(most_tokens=0), r"'caches.most_tokens': is 0, expected 1"),
    "call": (replace(MANIFEST, call=CALL), "'call': takes 'z', but the inputs are 'x'"),
    "no heads": (with_layer(num_heads=0), r"'layers\[0\]\.num_heads': is 0, expected 1 to"),
    "negative heads": (with_layer(num_heads=-4), r"num_heads': is -4, expected 1 to"),
    "2^70 heads": (with_layer(num_heads=2**70), r"num_heads': is about 2\^71, expected 1 to"),
    "kv heads": (with_layer(num_kv_heads=8), r"num_kv_heads': is 8, expected 1 to 4"),
    "head dim": (with_layer(head_dim=0), r"head_dim': is 0, expected 1"),
    "shared": (with_layer(num_shared_heads=5), r"num_shared_heads': is 5, expected 0 to 4"),
    "top k": (with_layer(num_shared_heads=1, top_k=4), r"top_k': is 4, expected 0 to 3"),
    "batch": (with_layer(batch=0), r"layers\[0\]\.batch': is 0, expected 1"),
    "kv len": (with_layer(kv_len=-1), r"kv_len': is -1, expected 1"),
    "share": (with_layer(active_share=1.5), r"active_share': is 1.5, expected 0 to 1"),
    "nan share": (with_layer(active_share=float("nan")), r"active_share': is nan, expected"),
    "closed": (with_layer(closed_heads=(0, 4)), r"closed_heads\[1\]': is 4, expected 0 to 3"),
    "no node": (with_layer(node=None), r"node': is None, but replaced is True"),
    "node": (with_layer(replaced=False), r"node': is 'blocks.*', but replaced is False"),
    "choice": (
        with_layer(replaced=False, node=None, choice="dense"),
        r"choice': is 'dense', but the layer was not replaced",
    ),
    "twice": (
        replace(MANIFEST, layers=(LAYER, LAYER)),
        r"'layers\[1\]\.path': is 'blocks\.0\.attn', as that of layers\[0\]",
    ),
    "dtype": (
        with_output("float33"),
        r"'outputs\[0\]\.dtype': is 'float33', expected one of float",
    ),
    "object": (with_output("object"), r"'outputs\[0\]\.dtype': is 'object'"),
    "size": (with_output("float32", -1), r"'outputs\[0\]\.shape\[0\]': is -1, expected 0"),
    "dimension": (
        with_output("float32", "batch", "past + 1"),
        r"'outputs\[0\]\.shape\[1\]': is 'past \+ 1', but dims has no 'past', only 'batch', 'seq'",
    ),
    "no dimension": (with_output("float32", ""), r"shape\[0\]': is '', but dims has no ''"),
    "dimension of an input": (
        replace(MANIFEST, inputs=(TensorInfo("x", "float32", ("batch*seq",)),)),
        r"'inputs\[0\]\.shape\[0\]': is 'batch\*seq', but dims has no 'batch\*seq'",
    ),
    "names": (
        replace(MANIFEST, outputs=MANIFEST.outputs * 2),
        r"'outputs\[1\]\.name': is 'y', as that of outputs\[0\]",
    ),
    "dims": (replace(MANIFEST, dims={"batch": 0, "seq": 3}), r"'dims\.batch': is 0, expected 1"),
    "no range": (
        replace(MANIFEST, dim_ranges={"past": (1, 2)}),
        r"'dim_ranges\.past': is no dynamic dimension, only 'batch', 'seq'",
    ),
    "range": (
        replace(MANIFEST, dim_ranges={"seq": (5, 4)}),
        r"'dim_ranges\.seq\[1\]': is 4, expected 5 to",
    ),
    "sum": (
        replace(MANIFEST, dim_sums=(DimSum(("past", "seq"), 9),)),
        r"'dim_sums\[0\]\.dims': 'past' is no dynamic dimension, only 'batch', 'seq'",
    ),
    "flops": (replace(MANIFEST, total_flops=-1), "'total_flops': is -1, expected 0"),
    "precision": (replace(MANIFEST, precision="int3"), "'precision': is 'int3', expected one of"),
    "no weights": (with_tuning(weights=()), r"'tuning\.weights': are all 0, so the times"),
    "weights of 0": (with_tuning(weights=(0.0,)), r"'tuning\.weights': are all 0, so the times"),
    "times of other choices": (
        with_tuning(
            sizes=({"batch": 2, "seq": 3},) * 2,
            weights=(1.0, 1.0),
            layer_ms=(({"dense": 1.0, "sparse": 0.5}, {"dense": 1.0}),),
            model_ms=(),
        ),
        r"layer_ms\[0\]\[1\]': has 'dense', but tuning\.layer_ms\[0\]\[0\] has 'dense', 'sparse'",
    ),
    "sizes without what is chosen by": (
        replace(
            with_layer(ranges=(SizeRange("seq", 3, "dense"),)),
            tuning=replace(TUNING, sizes=({"batch": 2},)),
        ),
        r"'tuning\.sizes\[0\]': has no 'seq', by which layers choose",
    ),
    "choice without projections": (
        with_layer(choice="projected"),
        r"'layers\[0\]\.choice': is 'projected', but the layer has only 'dense', 'sparse'",
    ),
    "choice of a range": (
        with_layer(ranges=(SizeRange("seq", 3, "projected"),)),
        r"'layers\[0\]\.ranges\[0\]\.choice': is 'projected', but the layer has only 'dense'",
    ),
    "weights": (with_tuning(weights=(1.0, 2.0)), r"'tuning\.weights': has 2 entries for 1 sets"),
    "layers": (with_tuning(layer_ms=((), ())), r"'tuning\.layer_ms': has 2 entries for 1 layers"),
    "times": (
        with_tuning(model_ms=({"dense": float("inf")},)),
        r"'tuning\.model_ms\[0\]\.dense': is inf, expected a finite number",
    ),
    "threads": (with_tuning(threads=0), r"'tuning\.threads': is 0, expected 1"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_no_model_can_have_is_refused_by_its_key(name: str):
    manifest, message = NONSENSE[name]
    with pytest.raises(PackageError, match=rf"m\.json: key .*{message}") as refused:
        check_sense(Path("m.json"), manifest)
    assert refused.value.hint


@pytest.mark.parametrize(
    "manifest",
    [
        MANIFEST,
        with_layer(num_kv_heads=None, head_dim=None, seq_len=None, kv_len=None, active_share=None),
        with_layer(num_shared_heads=1, top_k=3),
        with_layer(replaced=False, node=None),
        with_output("bfloat16", "2*batch + seq//2", "Max(1, seq - 1)", "u0", "None", 0),
        replace(MANIFEST, inputs=(TensorInfo("x", "int64", ("batch", "2*seq+1")),)),
        replace(MANIFEST, dim_ranges={"seq": (2, None), "batch": (2, 2)}),
        with_tuning(),
        with_tuning(layer_ms=((),), model_ms=()),
        with_caches(past_length="seq - 1", most_tokens=9),
    ],
    ids=lambda manifest: "",
)
def test_what_a_model_can_have_is_accepted(manifest: Manifest):
    check_sense(Path("m.json"), manifest)


LAYER_ROUNDING = LayerRounding(None, Spread(0.0, 0.0), Spread(1e-7, 3e-7))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mask", r"'valid_tokens': is 'mask', which is no input, only 'x'"),
        ("not mask", r"'valid_tokens': is 'mask', which is no input, only 'x'"),
        # What is added to scores hides keys by its numbers: there is nothing to turn round.
        ("not x", r"'valid_tokens': is 'x', an input of 3 axes, expected \[batch, tokens\], or"),
        ("ids", r"'valid_tokens': is 'ids', an input of 3 axes, expected \[batch, tokens\], or fl"),
        ("flat", r"'valid_tokens': is 'flat', an input of 1 axes, expected \[batch, tokens\]"),
    ],
)
def test_mask_of_valid_tokens_that_is_none_is_refused(name: str, message: str):
    ids = TensorInfo("ids", "int64", ("batch", 1, "seq"))
    flat = TensorInfo("flat", "float32", ("batch",))
    manifest = replace(MANIFEST, inputs=(*MANIFEST.inputs, ids, flat), valid_tokens=name)
    with pytest.raises(PackageError, match=message):
        check_sense(Path("m.json"), manifest)


@pytest.mark.parametrize(
    ("rounding", "message"),
    [
        (Rounding({}, ()), r"'rounding\.layers': has 0 entries for 1 layers"),
        (Rounding({"z": Spread(0, 0)}, (LAYER_ROUNDING,)), r"'rounding\.outputs\.z': is no output"),
        (
            Rounding({"y": Spread(-1.0, 0.0)}, (LAYER_ROUNDING,)),
            r"'rounding\.outputs\.y\.rms': is -1\.0, expected a finite number",
        ),
    ],
)
def test_rounding_of_another_model_is_refused(rounding: Rounding, message: str):
    check_sense(Path("m.json"), replace(MANIFEST, rounding=Rounding({}, (LAYER_ROUNDING,))))
    with pytest.raises(PackageError, match=message):
        check_sense(Path("m.json"), replace(MANIFEST, rounding=rounding))
