from __future__ import annotations

from dataclasses import replace

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import CacheBuffer, CachesInPlace, TensorInfo
from moh_deploy.runtime.tensorrt.profiles import (
    Span,
    fixed_places,
    make_profiles,
    opt_sizes,
    profile_text,
    shapes,
)
from tests.handmade_package import MANIFEST, WIDTH

LIMITED = replace(MANIFEST, dim_ranges={"seq": (2, 10)})
STATIC = replace(MANIFEST, dims={})
CACHED = replace(
    MANIFEST,
    dims={"batch": 2, "seq": 3, "total": 8, "buffer": 11},
    caches=CachesInPlace((CacheBuffer("past", "present", 2),), "total - seq", "seq"),
)


def test_a_profile_names_dimensions_and_leaves_the_others_as_usual():
    (profile,) = make_profiles(["batch=1..8..32"], MANIFEST)
    assert profile == {"batch": Span(1, 8, 32), "seq": Span(1, 3, 12)}
    assert opt_sizes(profile) == {"batch": 8, "seq": 3}


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("batch=8", Span(8, 8, 8)),
        ("batch:8", Span(8, 8, 8)),
        ("batch=1..32", Span(1, 32, 32)),
        (" batch = 1..8..32 ", Span(1, 8, 32)),
    ],
)
def test_other_ways_of_writing(text: str, span: Span):
    (profile,) = make_profiles([text], MANIFEST)
    assert profile["batch"] == span


def test_each_text_is_a_profile():
    first, second = make_profiles(["batch=1,seq=2..3", "batch=2..4"], MANIFEST)
    assert profile_text(first) == "batch=1,seq=2..3..3"
    assert profile_text(second) == "batch=2..4..4,seq=1..3..12"


def test_the_usual_profile_keeps_to_what_the_trace_is_good_for():
    assert make_profiles([], LIMITED) == ({"batch": Span(1, 2, 8), "seq": Span(2, 3, 10)},)


def test_a_static_model_has_none():
    assert make_profiles([], STATIC) == ()
    with pytest.raises(ConfigError, match="'batch=1', but the package has no dynamic dimension"):
        make_profiles(["batch=1"], STATIC)


def test_shapes_follow_from_expressions():
    inputs = (
        TensorInfo("x", "float32", ("batch", "seq", WIDTH)),
        TensorInfo("past", "float32", ("batch", "2*seq+1")),
    )
    assert shapes(inputs, {"batch": Span(1, 2, 4), "seq": Span(3, 5, 7)}) == {
        "x": ((1, 3, WIDTH), (2, 5, WIDTH), (4, 7, WIDTH)),
        "past": ((1, 7), (2, 11), (4, 15)),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch", "'batch' is of another form, expected NAME=MIN..OPT..MAX"),
        ("batch=1..2..3..4", "of another form"),
        ("batch=-1", "of another form"),
        ("batsh=1", "no dynamic dimension 'batsh', only batch, seq"),
        ("batch=1,batch=2", "has 'batch' twice"),
        ("batch=4..2..8", "batch=4..2..8 does not rise"),
        ("seq=1..2", "seq is 1..2..2, the package takes 2 to 10"),
        ("seq=2..11", "seq is 2..11..11, the package takes 2 to 10"),
        ("batch=2..1073741825", "the package takes 0 to 1073741824"),
    ],
)
def test_wrong_profiles_are_refused(text: str, message: str):
    with pytest.raises(ConfigError, match=message.replace("+", r"\+")):
        make_profiles([text], LIMITED)


def test_caches_in_place_have_one_number_of_places():
    assert fixed_places(make_profiles(["buffer=64", "batch=8,buffer=64"], CACHED), CACHED) == 64
    assert fixed_places(make_profiles([], MANIFEST), MANIFEST) is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "buffer=1..11..44: TensorRT writes into caches of one fixed number of places"),
        (["buffer=64", "buffer=32"], "buffer=64, 32: TensorRT writes"),
        (["buffer=16"], "up to 32 for 'total', and caches of 16 places"),
    ],
)
def test_places_that_are_open_or_too_few_are_refused(texts: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        fixed_places(make_profiles(texts, CACHED), CACHED)
