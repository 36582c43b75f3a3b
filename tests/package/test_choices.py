from __future__ import annotations

from dataclasses import replace

import pytest

from moh_deploy.errors import ConfigError
from moh_deploy.package import choices_for, current_choice, node_domains, with_choices
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
    domains = node_domains([replace(PROJECTED, choice=choice)])
    assert domains == {LAYER.node: attention, "q": projections, "o": projections}


def test_layers_are_chosen_one_by_one():
    layers = with_choices([*LAYERS, KEPT], {"blocks.1.attn": "dense"})
    assert [layer.choice for layer in layers] == [None, "dense", None]
    assert node_domains(layers) == {FIRST: "moh", SECOND: "moh.dense"}


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
