from dataclasses import replace

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import (
    LayerInfo,
    SizeRange,
    at_sizes,
    choice_text,
    choices_for,
    current_choice,
    node_rules,
    with_choices,
)
from tests.handmade_package import LAYER
from tests.two_layers import FIRST, LAYERS, SECOND

PROJECTED = replace(LAYER, query_projection="q", output_projection="o")
ONE_PROJECTION = replace(LAYER, output_projection="o")
KEPT = replace(LAYER, path="kept", replaced=False, node=None)


def test_layer_with_projections_has_one_choice_more():
    assert choices_for(LAYER) == ("dense", "sparse")
    assert choices_for(PROJECTED) == choices_for(ONE_PROJECTION) == ("dense", "sparse", "projected")
    assert choices_for(KEPT) == ()


def test_where_nobody_chose_kernels_run_all_that_they_can():
    assert current_choice(LAYER) == "sparse"
    assert current_choice(PROJECTED) == "projected"
    assert current_choice(replace(PROJECTED, choice="dense")) == "dense"
    assert current_choice(KEPT) is None


@pytest.mark.parametrize(
    ("choice", "attention", "projections"),
    [
        ("dense", "moh.dense", "moh.dense"),
        ("sparse", "moh", "moh.dense"),
        ("projected", "moh", "moh"),
        (None, "moh", "moh"),
    ],
)
def test_choice_says_where_each_node_belongs(choice: str, attention: str, projections: str):
    rules = node_rules([replace(PROJECTED, choice=choice)])
    assert {name: rule.domain for name, rule in rules.items()} == {
        LAYER.node: attention,
        "q": projections,
        "o": projections,
    }


def test_layers_are_chosen_one_by_one():
    layers = with_choices([*LAYERS, KEPT], {"blocks.1.attn": "dense"})
    assert [layer.choice for layer in layers] == [None, "dense", None]
    domains = {name: rule.domain for name, rule in node_rules(layers).items()}
    assert domains == {FIRST: "moh", SECOND: "moh.dense"}


def test_all_means_the_nearest_that_each_layer_has_and_a_path_wins():
    layers = [*LAYERS, replace(PROJECTED, path="blocks.2.attn"), KEPT]
    chosen = with_choices(layers, {"blocks.1.attn": "dense", "all": "projected"})
    assert [layer.choice for layer in chosen] == ["sparse", "dense", "projected", None]


@pytest.mark.parametrize(
    ("choices", "message", "hint"),
    [
        ({"blocks.1.atn": "dense"}, r"no layer 'blocks\.1\.atn' has", "'blocks.1.attn'?"),
        ({"kept": "dense"}, r"no layer 'kept' has anything .* blocks\.0\.attn, blocks", None),
        ({"blocks.0.attn": "projected"}, "cannot be 'projected', only dense, sparse", None),
        ({"all": "spars"}, r"no layer can be 'spars', only dense, sparse\.", "'sparse'?"),
        ({"all": "projected"}, r"no layer can be 'projected', only dense, sparse\.", None),
    ],
)
def test_choice_that_a_layer_does_not_have_is_refused(
    choices: dict[str, str], message: str, hint: str | None
):
    with pytest.raises(ConfigError, match=message) as refused:
        with_choices([*LAYERS, KEPT], choices)
    assert hint is None or hint in (refused.value.hint or "")


def ranged(layer: LayerInfo = PROJECTED, **choices: str) -> LayerInfo:
    return with_choices([layer], choices, dims=["batch", "seq"])[0]


def test_node_depends_on_sizes_only_where_its_domain_does():
    """Between sparse and projected, attention runs on its kernel at all sizes."""
    rules = node_rules([ranged(**{"all[seq<=64]": "sparse", "all": "projected"})])
    assert rules[str(LAYER.node)].domain == "moh"
    assert str(rules["q"]) == str(rules["o"]) == "moh.dense if seq<=64, else moh"


def test_choice_by_size_is_the_first_range_that_sizes_are_in():
    layer = ranged(
        **{
            "all[seq<=64]": "sparse",
            "all[seq<=1]": "dense",
            "all[batch*seq<=999]": "projected",
            "all": "dense",
        }
    )
    text = "dense if seq<=1, else sparse if seq<=64, else projected if batch*seq<=999, else dense"
    assert choice_text(layer) == text
    chosen = dict.fromkeys((2, 64), "sparse") | {1: "dense", 65: "projected", 500: "dense"}
    for seq, choice in chosen.items():
        (sized,) = at_sizes([layer], {"batch": 2, "seq": seq})
        assert (sized.choice, sized.ranges) == (choice, ())


def test_named_layer_has_no_ranges_but_its_own():
    choices = {"all[seq<=9]": "dense", "all": "sparse", "blocks.1.attn": "dense"}
    first, second = with_choices(LAYERS, choices, dims=["seq"])
    assert first.ranges == (SizeRange("seq", 9, "dense"),)
    assert (second.choice, second.ranges) == ("dense", ())


def test_range_alone_keeps_what_a_layer_is_otherwise():
    layer = ranged(replace(PROJECTED, choice="sparse"), **{"all[seq<=9]": "dense"})
    assert choice_text(layer) == "dense if seq<=9, else sparse"
    assert choice_text(ranged(layer, all="projected")) == "projected"


def test_ranges_that_change_nothing_are_left_out():
    layer = ranged(**{"all[seq<=9]": "dense", "all[seq<=20]": "sparse", "all": "sparse"})
    assert layer.ranges == (SizeRange("seq", 9, "dense"),)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("all[seq<64]", r"expected LAYER\[SIZE<=N\]"),
        ("all[seq<=64", r"'all\[seq<=64' is no layer with a range"),
        ("all[seq<=9999999999999999999]", "is no layer with a range"),
        ("all[seq<=-1]", r"expected LAYER\[SIZE<=N\]"),
        ("all[width<=64]", "no dynamic dimension 'width', only batch, seq"),
        ("all[batch*sec<=64]", "no dynamic dimension 'sec'"),
        ("blocks.7.attn[seq<=64]", r"no layer 'blocks\.7\.attn'"),
    ],
)
def test_range_of_another_form_is_refused(where: str, message: str):
    with pytest.raises(ConfigError, match=message):
        ranged(**{where: "dense"})
