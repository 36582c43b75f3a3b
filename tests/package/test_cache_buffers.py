"""Manifest and runs of caches that grow, brought to buffers."""

from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.package import (
    CacheBuffer,
    CachesInPlace,
    DimSum,
    SizeRange,
    TensorInfo,
    VectorSet,
)
from moh_deploy.package.cache_buffers import (
    in_buffers,
    in_given_buffers,
    new_length,
    past_length,
    rounded_to,
    with_dtypes,
    without_room,
)
from moh_deploy.system.npz import BFLOAT16
from tests.handmade_package import LAYER, MANIFEST

CACHES = CachesInPlace((CacheBuffer("past", "present", 1),), "total - seq", "seq")
TOLD = replace(CACHES, past_length="past_sequence_length")
KNOWN = replace(
    MANIFEST,
    inputs=(
        TensorInfo("mask", "bool", ("batch", "total")),
        TensorInfo("ids", "int64", ("batch", "seq")),
        TensorInfo("past", "float32", ("batch", "cached", 2)),
    ),
    outputs=(TensorInfo("present", "float32", ("batch", "cached + seq", 2)),),
    dims={"batch": 1, "seq": 2, "total": 5, "cached": 3},
    dim_ranges={"cached": (0, 9), "seq": (1, 4)},
    dim_sums=(DimSum(("cached", "seq"), 9),),
    layers=(
        replace(
            LAYER, ranges=(SizeRange("batch*cached", 3, "dense"), SizeRange("seq", 1, "dense"))
        ),
    ),
)


def grown(past: int, new: int, dtype: object = np.float32) -> VectorSet:
    present = (1 + np.arange(2 * (past + new))).reshape(1, past + new, 2).astype(dtype)
    return VectorSet(
        {"batch": 1, "seq": new, "total": past + new, "cached": past},
        {
            "mask": np.ones((1, past + new), bool),
            "ids": np.zeros((1, new), np.int64),
            "past": present[:, :past],
        },
        {"present": present},
        (),
        (),
    )


RUNS = [grown(3, 2), grown(0, 1), grown(1, 1)]


def test_manifest_says_what_the_model_takes():
    manifest, _ = in_buffers(KNOWN, RUNS, CACHES)
    assert manifest.inputs[2].shape == ("batch", "buffer", 2)
    assert manifest.outputs[0].shape == ("batch", "buffer", 2)
    assert manifest.dims == {"batch": 1, "seq": 2, "total": 5, "buffer": 8}
    assert manifest.dim_ranges == {"seq": (1, 4)}
    assert manifest.dim_sums == ()
    assert manifest.layers[0].ranges == (SizeRange("seq", 1, "dense"),)
    assert manifest.caches == CACHES
    assert manifest.proof is None


def test_dimension_that_another_input_has_stays():
    manifest = replace(KNOWN, inputs=(*KNOWN.inputs, TensorInfo("kinds", "int64", ("cached",))))
    changed, runs = in_buffers(manifest, RUNS, replace(CACHES, past_length="cached"))
    assert changed.dims["cached"] == 3
    assert runs[0].sizes["cached"] == 3


def test_input_tells_where_no_size_does():
    manifest, runs = in_buffers(KNOWN, RUNS, TOLD)
    assert manifest.inputs[-1] == TensorInfo("past_sequence_length", "int64", ())
    assert [int(run.inputs["past_sequence_length"]) for run in runs] == [3, 0, 1]


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16, np.int8])
def test_runs_have_their_tokens_first_and_the_room_of_both_is_one(dtype: object):
    before = [grown(3, 2, dtype), grown(0, 1, dtype), grown(1, 1, dtype)]
    _, runs = in_buffers(KNOWN, before, CACHES)
    for run, old in zip(runs, before, strict=True):
        past, present = run.inputs["past"], run.outputs["present"]
        total = old.sizes["total"]
        assert past.shape == present.shape == (1, run.sizes["buffer"], 2)
        assert past.dtype == old.inputs["past"].dtype
        np.testing.assert_array_equal(present[:, :total], old.outputs["present"])
        np.testing.assert_array_equal(past[:, : old.sizes["cached"]], old.inputs["past"])
        np.testing.assert_array_equal(past[:, total:], present[:, total:])
    # Room, none, room.
    assert [run.sizes["buffer"] - run.sizes["total"] for run in runs] == [3, 0, 5]


def test_room_is_no_zeros_and_no_copy_of_what_is_filled():
    _, runs = in_buffers(KNOWN, RUNS, CACHES)
    room = runs[2].inputs["past"][:, 1:]
    assert (room != 0).all()
    assert (room != runs[2].outputs["present"][:, :1]).all()


@pytest.mark.parametrize(
    ("text", "new", "known", "expected"),
    [
        ("total - seq", "seq", {"total": 9, "seq": 2}, (7, 2)),
        ("total - 1", 1, {"total": 9}, (8, 1)),
        ("past", "seq", {"past": 4, "seq": 3}, (4, 3)),
        ("past_sequence_length", 1, {"past_sequence_length": 6}, (6, 1)),
    ],
)
def test_lengths_of_a_call(text: str, new: str | int, known: dict, expected: tuple[int, int]):
    caches = CachesInPlace(CACHES.buffers, text, new)
    assert (past_length(caches, known), new_length(caches, known)) == expected


@pytest.mark.parametrize("caches", [CACHES, TOLD])
def test_original_is_given_what_is_filled_and_its_results_go_into_the_buffers(
    caches: CachesInPlace,
):
    manifest, runs = in_buffers(KNOWN, RUNS, caches)
    for run, old in zip(runs, RUNS, strict=True):
        given = without_room(run.inputs, manifest)
        assert given.keys() == old.inputs.keys()
        for name, array in old.inputs.items():
            np.testing.assert_array_equal(given[name], array)
        made = in_given_buffers(old.outputs, run.inputs, manifest)
        np.testing.assert_array_equal(made["present"], run.outputs["present"])


def test_package_whose_caches_grow_is_given_as_it_is():
    inputs, outputs = RUNS[0].inputs, RUNS[0].outputs
    assert without_room(inputs, KNOWN) == inputs
    assert in_given_buffers(outputs, inputs, KNOWN) == outputs


@pytest.mark.parametrize(("dtype", "expected"), [("float16", np.float16), ("bfloat16", BFLOAT16)])
def test_caches_are_rounded_and_nothing_else(dtype: str, expected: object):
    names = {"past": dtype, "present": dtype}
    manifest, runs = in_buffers(KNOWN, RUNS, CACHES)
    assert [info.dtype for info in with_dtypes(manifest, names).inputs] == [
        "bool",
        "int64",
        dtype,
    ]
    run = rounded_to(runs[0], names)
    assert run.inputs["past"].dtype == run.outputs["present"].dtype == expected
    assert run.inputs["ids"].dtype == np.int64
