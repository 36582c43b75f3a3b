import re
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
    Made,
    Manifest,
    Proof,
    Rounding,
    RouterTypes,
    SizeRange,
    Spread,
    TensorInfo,
    TextGeneration,
    Tuning,
)
from moh_deploy.package.manifest_json import manifest_text, read_manifest
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


SPREAD = Spread(0.0, 0.0)

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
    "filled": (
        with_caches(past_length="t - seq"),
        r"'caches.past_length': 't' is not one of 'batch'",
    ),
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
        "'caches.new_length': 'seq - 1' is not one of 'batch', 'seq'",
    ),
    "added": (
        with_caches(new_length="s"),
        r"'caches.new_length': 's' is not one of 'batch', 'seq'",
    ),
    "call": (replace(MANIFEST, call=CALL), "'call': takes 'z', but the inputs are 'x'"),
    "kv heads": (with_layer(num_kv_heads=8), r"num_kv_heads': is 8, expected 1 to 4"),
    "shared": (with_layer(num_shared_heads=5), r"num_shared_heads': is 5, expected 0 to 4"),
    "top k": (with_layer(num_shared_heads=1, top_k=4), r"top_k': is 4, expected 0 to 3"),
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
    "rounding": (
        replace(MANIFEST, rounding=Rounding({}, ())),
        r"'rounding\.layers': has 0 entries for 1 layers",
    ),
    "rounding of an output": (
        replace(MANIFEST, rounding=Rounding({"z": SPREAD}, (LayerRounding(None, SPREAD, None),))),
        r"'rounding\.outputs\.z': is no output, only 'y'",
    ),
    "made": (
        replace(MANIFEST, made=Made("", "", ((), ()))),
        r"'made\.kept': has 2 entries for 1 l",
    ),
    "made of": (
        replace(MANIFEST, made=Made("", "", ((2, 1),))),
        r"'made\.kept\[0\]': is \[2, 1\], expected at most 4 heads, ascending",
    ),
    "padding": (
        replace(MANIFEST, text_generation=TextGeneration(7, pad_token_id=7)),
        r"'text_generation\.pad_token_id': is 7, expected 0 to 6",
    ),
    "file": (replace(MANIFEST, files={"../x": ""}), r"'files': names '\.\./x', expected a plain"),
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
}


def read_back(manifest: Manifest, folder: Path) -> Manifest:
    (folder / "m.json").write_text(manifest_text(manifest))
    return read_manifest(folder / "m.json")


@pytest.mark.parametrize("name", NONSENSE)
def test_parts_that_contradict_each_other_are_refused(tmp_path: Path, name: str):
    manifest, message = NONSENSE[name]
    with pytest.raises(PackageError, match=rf"m\.json: key .*{message}") as refused:
        read_back(manifest, tmp_path)
    assert refused.value.hint


OUT_OF_RANGE: list[tuple[str, object, Manifest]] = [
    ("caches.most_tokens", 0, with_caches(most_tokens=0)),
    ("layers[0].path", "''", with_layer(path="")),
    *[("layers[0].num_heads", value, with_layer(num_heads=value)) for value in (0, -4, 2**70)],
    *[
        (f"layers[0].{name}", 0, with_layer(**{name: 0}))
        for name in ("num_kv_heads", "head_dim", "batch", "seq_len", "kv_len")
    ],
    *[
        (f"layers[0].{name}", -1, with_layer(**{name: -1}))
        for name in ("num_shared_heads", "top_k")
    ],
    ("layers[0].active_share", 1.5, with_layer(active_share=1.5)),
    ("layers[0].active_share", "'NaN'", with_layer(active_share=float("nan"))),
    ("layers[0].closed_heads[0]", -1, with_layer(closed_heads=(-1,))),
    ("layers[0].router", "'magic'", with_layer(router="magic")),
    ("layers[0].router_types.scores", "'f'", with_layer(router_types=RouterTypes(None, "f", "f"))),
    ("layers[0].ranges[0].at_most", -1, with_layer(ranges=(SizeRange("seq", -1, "dense"),))),
    ("outputs[0].dtype", "'float33'", with_output("float33")),
    ("outputs[0].dtype", "'object'", with_output("object")),
    ("dims.batch", 0, replace(MANIFEST, dims={"batch": 0, "seq": 3})),
    ("dim_ranges.seq[0]", -1, replace(MANIFEST, dim_ranges={"seq": (-1, None)})),
    ("dim_sums[0].most", -1, replace(MANIFEST, dim_sums=(DimSum(("seq",), -1),))),
    ("total_flops", -1, replace(MANIFEST, total_flops=-1)),
    ("precision", "'int3'", replace(MANIFEST, precision="int3")),
    ("proof.sizes[0].seq", -1, replace(MANIFEST, proof=Proof(0.0, 1.0, ({"seq": -1},)))),
    ("tuning.weights[0]", -1.0, with_tuning(weights=(-1.0,))),
    ("tuning.model_ms[0].dense", "'Infinity'", with_tuning(model_ms=({"dense": float("inf")},))),
    ("tuning.threads", 0, with_tuning(threads=0)),
    (
        "rounding.outputs.y.rms",
        -1.0,
        replace(MANIFEST, rounding=Rounding({"y": Spread(-1.0, 0.0)}, ())),
    ),
    ("text_generation.vocab_size", 0, replace(MANIFEST, text_generation=TextGeneration(0))),
]


@pytest.mark.parametrize(
    ("key", "got", "manifest"), OUT_OF_RANGE, ids=[f"{key} {got}" for key, got, _ in OUT_OF_RANGE]
)
def test_value_out_of_range_is_refused_by_its_key(
    tmp_path: Path, key: str, got: object, manifest: Manifest
):
    message = rf"m\.json: key '{re.escape(key)}': (Input|String) should .*, got {got}\."
    with pytest.raises(PackageError, match=message) as refused:
        read_back(manifest, tmp_path)
    assert refused.value.hint


@pytest.mark.parametrize(("field", "value"), [("max_abs_error", -1.0), ("routing_agreement", 1.1)])
def test_proof_that_none_can_be_is_refused(tmp_path: Path, field: str, value: float):
    proof = replace(Proof(float("nan"), float("nan"), ()), **{field: value})
    with pytest.raises(PackageError, match=rf"key 'proof\.{field}': is {value}, expected 0 to "):
        read_back(replace(MANIFEST, proof=proof), tmp_path)


def test_value_out_of_range_by_an_edit_is_an_edit(tmp_path: Path):
    text = manifest_text(MANIFEST).replace('"num_heads": 4', '"num_heads": 0')
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(PackageError, match=r"m\.json has changed since the package was written"):
        read_manifest(tmp_path / "m.json")


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
def test_what_a_model_can_have_is_accepted(tmp_path: Path, manifest: Manifest):
    assert read_back(manifest, tmp_path) == manifest


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
def test_mask_of_valid_tokens_that_is_none_is_refused(tmp_path: Path, name: str, message: str):
    ids = TensorInfo("ids", "int64", ("batch", 1, "seq"))
    flat = TensorInfo("flat", "float32", ("batch",))
    manifest = replace(MANIFEST, inputs=(*MANIFEST.inputs, ids, flat), valid_tokens=name)
    with pytest.raises(PackageError, match=message):
        read_back(manifest, tmp_path)
