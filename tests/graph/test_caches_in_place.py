"""Caches that are written in place give what caches that grow give, call by call."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from packaging import version

from moh_deploy.errors import ConfigError
from moh_deploy.graph.caches_in_place import put_caches_in_place
from moh_deploy.graph.growing_caches import PAST_LENGTH
from moh_deploy.package import CacheBuffer, CachesInPlace, DimSum, Manifest, VectorSet
from moh_deploy.package.cache_buffers import in_buffers, without_room
from moh_deploy.system.npz import Array
from tests.graph.decoders import (
    CAUSAL,
    HEAD_DIM,
    KV_HEADS,
    LAYER,
    MASKED,
    WINDOW,
    decoder,
    inputs,
    opened,
    recorded,
)

pytestmark = pytest.mark.skipif(
    version.parse(ort.__version__) < version.parse("1.25"),
    reason="this ONNX Runtime may have no TensorScatter",
)

ROOM, BATCH, TOKENS = 24, 2, 20
CALLS = (7, 1, 5, *(1,) * 7)
CACHES = {"past_key": "present_key", "past_value": "present_value"}
UNMASKED = CAUSAL + "seen = Identity (visible)"
WEIGHED = (
    LAYER
    + """
    sums = ReduceSum <keepdims = 0> (present_key)
    size = Shape (present_value)
    before = ReduceMax <keepdims = 0> (past_value)
"""
)


def in_place(model: ir.Model, *, with_mask: bool = True) -> CachesInPlace:
    return put_caches_in_place(model, *recorded(model, with_mask=with_mask))


def calls(with_mask: bool) -> list[tuple[int, dict[str, Array]]]:
    """Return the inputs of each call but for caches, and how many tokens came before."""
    everything = inputs(batch=BATCH, seq=TOKENS, past=0, padding=2)
    given, begin = [], 0
    for count in CALLS:
        feeds = {"ids": everything["ids"][:, begin : begin + count]}
        if with_mask:
            feeds["mask"] = everything["mask"][:, : begin + count]
        given.append((begin, feeds))
        begin += count
    return given


def check_calls(grows: ir.Model, written: ir.Model, tells: str | None, *, with_mask: bool) -> None:
    """Run prompt, chunk and steps both ways; the room holds NaN, as memory of anybody may."""
    shape = (BATCH, KV_HEADS, 0, HEAD_DIM)
    old = dict.fromkeys(CACHES, np.zeros(shape, np.float32))
    places = (BATCH, KV_HEADS, ROOM, HEAD_DIM)
    buffers = dict.fromkeys(CACHES, np.full(places, np.nan, np.float32))
    run_grown, run_written = opened(grows), opened(written)
    for past, feeds in calls(with_mask):
        expected = run_grown(feeds | old)
        told = {} if tells is None else {tells: np.asarray(past)}
        got = run_written(feeds | told | buffers)
        for name, value in expected.items():
            if name not in CACHES.values():
                np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=f"{name} at {past}")
        for name, present in CACHES.items():
            old[name], buffers[name] = expected[present], got[present]
            filled = old[name].shape[2]
            np.testing.assert_array_equal(buffers[name][:, :, :filled], old[name])
            assert np.isnan(buffers[name][:, :, filled:]).all()


def by_op(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op]


@pytest.mark.parametrize(("mask", "with_mask"), [(MASKED, True), (WINDOW, True), (UNMASKED, False)])
def test_prompt_chunk_and_steps_are_those_of_caches_that_grow(mask: str, with_mask: bool):
    grows, written = (decoder(mask, with_mask=with_mask) for _ in range(2))
    caches = in_place(written, with_mask=with_mask)
    assert caches.past_length == ("total - seq" if with_mask else "past_sequence_length")
    tells = None if with_mask else caches.past_length
    check_calls(grows, written, tells, with_mask=with_mask)
    assert not by_op(written, "Slice")
    assert len(by_op(written, "TensorScatter")) == 2


def named_as_the_input_that_tells(*, with_mask: bool) -> tuple[ir.Model, Manifest, list[VectorSet]]:
    """A decoder whose cached tokens are called `past_sequence_length`, and a call adds three."""
    model = decoder(MASKED if with_mask else UNMASKED, with_mask=with_mask)
    manifest, runs = recorded(model, with_mask=with_mask)
    shapes = dict.fromkeys(CACHES, ("batch", KV_HEADS, PAST_LENGTH, HEAD_DIM))
    shapes |= dict.fromkeys(CACHES.values(), ("batch", KV_HEADS, f"{PAST_LENGTH} + 3", HEAD_DIM))
    shapes |= {"mask": ("batch", f"{PAST_LENGTH}+3")}
    for value in model.graph.inputs:
        value.shape = ir.Shape(shapes.get(value.name or "", value.shape or ()))
    given, returned = (
        tuple(replace(item, shape=shapes.get(item.name, item.shape)) for item in tensors)
        for tensors in (manifest.inputs, manifest.outputs)
    )
    runs = [
        replace(run, sizes={**run.sizes, PAST_LENGTH: run.sizes["past"]})
        for run in runs
        if run.sizes["seq"] == 3
    ]
    dims = {name: runs[0].sizes[name] for name in ("batch", "seq", PAST_LENGTH)}
    return model, replace(manifest, inputs=given, outputs=returned, dims=dims), runs


@pytest.mark.parametrize("with_mask", [False, True])
def test_dimension_of_the_name_of_the_input_that_tells(with_mask: bool):
    """Optimum calls it so: the input takes its place, unless the size of a mask tells."""
    model, manifest, runs = named_as_the_input_that_tells(with_mask=with_mask)
    caches = put_caches_in_place(model, manifest, runs)
    assert caches.past_length == PAST_LENGTH
    manifest, changed = in_buffers(manifest, runs, caches)
    names = [value.name for value in manifest.inputs]
    assert sorted(names) == sorted(value.name or "" for value in model.graph.inputs)
    assert (PAST_LENGTH in names) == (PAST_LENGTH not in manifest.dims) == (not with_mask)
    run = opened(model)
    for item, before in zip(changed, runs, strict=True):
        np.testing.assert_allclose(run(item.inputs)["y"], before.outputs["y"], atol=1e-5)
        given = without_room(item.inputs, manifest)
        assert given.keys() == before.inputs.keys()
        np.testing.assert_array_equal(given["past_key"], before.inputs["past_key"])


def test_what_it_takes_is_told():
    assert in_place(decoder()) == CachesInPlace(
        buffers=tuple(CacheBuffer(*pair, axis=2) for pair in CACHES.items()),
        past_length="total - seq",
        new_length="seq",
    )


def test_other_readers_of_a_cache_see_what_is_filled():
    grows, written = (decoder(layer=WEIGHED) for _ in range(2))
    for model in (grows, written):
        inner = {value.name: value for node in model.graph for value in node.outputs}
        model.graph.outputs.extend(inner[name] for name in ("sums", "size", "before"))
    manifest, runs = recorded(grows)
    put_caches_in_place(written, manifest, runs)
    del grows.graph.outputs[-1], written.graph.outputs[-1]  # of an empty cache there is no largest
    check_calls(grows, written, None, with_mask=True)
    # Sizes are told, and nothing is copied for them.
    assert len(by_op(written, "Slice")) == 2


def test_axes_of_a_cache_that_were_asked_for_stay():
    model = decoder()
    (shape,) = (node for node in model.graph if node.outputs[0].name == "cached")
    for begin, end in ((0, 4), (0, 2), (-2, 4), (2, 3), (1, -1)):
        other = ir.node("Shape", [shape.inputs[0]], {"start": begin, "end": end})
        other.outputs[0].name = f"sizes {begin}:{end}"
        model.graph.append(other)
        model.graph.outputs.append(other.outputs[0])
    feeds = inputs(batch=2, seq=3, past=5)
    expected = opened(model)(feeds)
    manifest, runs = recorded(decoder())
    put_caches_in_place(model, manifest, runs)
    for name in CACHES:
        feeds[name] = np.concatenate((feeds[name], feeds[name]), axis=2)
    got = opened(model)(feeds)
    for name, value in expected.items():
        if name.startswith("sizes"):
            np.testing.assert_array_equal(got[name], value, err_msg=name)


def replaced(old: str, new: str) -> str:
    assert old in LAYER
    return LAYER.replace(old, new)


BEFORE = replaced("(past_key, k)", "(k, past_key)")
CAST = replaced("(past_key, k)", "(narrow_key, k)").replace(
    "present_key =", "narrow_key = Cast <to = 1> (past_key) present_key ="
)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (BEFORE, r"'present_key' grows .* new tokens are joined before those of 'past_key'"),
        (CAST, r"'present_key' grows .* 'past_key' is changed before new tokens are joined, or"),
    ],
)
def test_cache_of_another_form_is_refused_with_the_reason(layer: str, message: str):
    model = decoder(layer=layer)
    with pytest.raises(ConfigError, match=message):
        in_place(model)


def test_model_without_caches_is_refused():
    model = decoder()
    del model.graph.outputs[1:]
    manifest, runs = recorded(decoder())
    with pytest.raises(ConfigError, match="the model has no cache that could be written in place"):
        put_caches_in_place(model, replace(manifest, outputs=manifest.outputs[:1]), runs)


@pytest.mark.parametrize(
    ("grown", "ranges", "sums", "expected"),
    [
        ("past + seq", {}, (), (0, None)),
        # A table of positions; an empty cache that the trace does not take.
        ("past + seq", {"past": (1, None)}, (DimSum(("past", "seq"), 32),), (1, 32)),
        ("past + 3", {"past": (0, 29)}, (), (0, 32)),
    ],
)
def test_limits_of_what_is_cached_are_those_of_what_is_filled(
    grown: str, ranges: dict, sums: tuple[DimSum, ...], expected: tuple[int, int | None]
):
    manifest, runs = recorded(decoder())
    shape = ("batch", KV_HEADS, grown, HEAD_DIM)
    outputs = (
        manifest.outputs[0],
        *(replace(value, shape=shape) for value in manifest.outputs[1:]),
    )
    manifest = replace(manifest, outputs=outputs, dim_ranges=ranges, dim_sums=sums)
    if grown.endswith("3"):
        runs = [runs[0], runs[3]]  # those of 3 tokens
    caches = put_caches_in_place(decoder(), manifest, runs)
    assert (caches.least_past, caches.most_tokens) == expected
