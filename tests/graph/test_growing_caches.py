"""What tells how long caches are, and how much they grow."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.graph.growing_caches import CacheLengths, cache_lengths, growing_caches
from moh_deploy.package import Manifest, TensorInfo, VectorSet
from tests.graph.decoders import decoder, recorded

Change = Callable[[VectorSet], VectorSet]


@pytest.fixture(scope="module")
def known() -> tuple[Manifest, list[VectorSet]]:
    return recorded(decoder())


def lengths(manifest: Manifest, runs: list[VectorSet]) -> CacheLengths:
    return cache_lengths(growing_caches(decoder(), manifest), manifest, runs)


def dims_of(manifest: Manifest, name: str, shape: tuple[int | str, ...]) -> Manifest:
    def changed(tensors: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
        return tuple(replace(item, shape=shape) if item.name == name else item for item in tensors)

    return replace(manifest, inputs=changed(manifest.inputs), outputs=changed(manifest.outputs))


def at(runs: list[VectorSet], **sizes: Callable[[VectorSet], int]) -> list[VectorSet]:
    """Return the runs with other sizes of dimensions."""
    return [
        replace(run, sizes={**run.sizes, **{name: size(run) for name, size in sizes.items()}})
        for run in runs
    ]


def test_mask_over_cached_and_new_tokens_tells(known):
    assert lengths(*known) == CacheLengths("past", "total - seq", "seq")


def test_mask_of_another_length_in_any_run_does_not(known):
    manifest, runs = known
    other = at(runs, total=lambda run: run.sizes["total"] + (run.sizes["batch"] == 3))
    assert lengths(manifest, other).past_length == "past_sequence_length"


def test_one_run_alone_may_agree_by_chance(known):
    manifest, runs = known
    assert lengths(manifest, runs[:1]).past_length == "past_sequence_length"


@pytest.mark.parametrize(
    "other",
    [
        TensorInfo("past_sequence_length", "int64", ()),
        TensorInfo("halves", "int64", ("2*past_sequence_length",)),
    ],
)
def test_input_that_tells_has_no_name_of_others(known, other: TensorInfo):
    manifest, runs = known
    found = lengths(replace(manifest, inputs=(*manifest.inputs, other)), runs[:1])
    assert found.tells == found.past_length == "filled_past_sequence_length"


def test_size_that_names_the_cache_tells(known):
    manifest, runs = known
    assert lengths(dims_of(manifest, "mask", ("batch", "past+1")), runs).past_length == "past"


def test_new_tokens_are_what_the_output_says(known):
    manifest, runs = known
    shape = ("batch", 2, "past + 3", 4)
    threes = [runs[0], runs[3]]
    assert lengths(dims_of(manifest, "present_key", shape), threes).new_length == 3
    # Not if a run says otherwise: the only dimension of that size is believed.
    assert lengths(dims_of(manifest, "present_key", shape), runs).new_length == "seq"


def test_unknown_number_of_new_tokens_is_refused(known):
    manifest, runs = known
    manifest = dims_of(manifest, "present_key", ("batch", 2, "s77", 4))
    # Two dimensions have its size in every run.
    same = at(runs, seq=lambda run: run.sizes["seq"], other=lambda run: run.sizes["seq"])
    both = replace(manifest, dims={**manifest.dims, "other": 3})
    with pytest.raises(ConfigError, match=r"'present_key' has 's77' tokens.* not known how many"):
        lengths(both, same)
    assert lengths(manifest, runs).new_length == "seq"


def test_caches_of_two_lengths_are_refused(known):
    manifest, runs = known
    manifest = dims_of(manifest, "past_value", ("batch", 2, "older", 4))
    manifest = replace(manifest, dims={**manifest.dims, "older": 5})
    equal = at(runs, older=lambda run: run.sizes["past"])
    assert lengths(manifest, equal).past_dim == "past"
    other = at(runs, older=lambda run: run.sizes["past"] + 1)
    with pytest.raises(ConfigError, match=r"lengths of their own \(past, older\)"):
        lengths(manifest, other)


def test_caches_that_differ_in_a_run_are_refused(known):
    manifest, runs = known
    longer = np.zeros((2, 2, 9, 4), np.float32)
    other = replace(runs[0], inputs={**runs[0].inputs, "past_value": longer})
    with pytest.raises(ConfigError, match="lengths of their own"):
        lengths(manifest, [other, *runs[1:]])


def test_cache_of_no_dimension_of_its_own_is_refused(known):
    manifest, runs = known
    with pytest.raises(ConfigError, match=r"'past_key' has '2\*half' cached tokens"):
        lengths(dims_of(manifest, "past_key", ("batch", 2, "2*half", 4)), runs)
