from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.report.document import MarginBin, MarginHistogram
from moh_deploy.system.npz import Array
from moh_deploy.validate.compare.routing_statistics import (
    HeadLoad,
    RoutingStatistics,
    class_load,
    joined,
    layer_statistics,
)
from tests.routed_package import DEPTH, SEQ, write_routed

GATES = np.asarray([[[1.0, 0.5, 0.0], [1.0, 0.0, 0.5]]], np.float32)  # [1, 2, 3]
MARGINS = np.asarray([[0.5, 2e-4]], np.float32)


def flips(histogram: MarginHistogram) -> int:
    """Count the tokens that chose other heads."""
    return sum(one.explained + one.unexplained for one in histogram.bins)


def counted(got: Array | None, margins: Array = MARGINS, bound: float = 1e-3) -> RoutingStatistics:
    return layer_statistics("a", 1, got, GATES, margins, bound)


def test_load_of_a_head_is_the_number_of_tokens_that_it_is_on_for():
    (load,) = counted(GATES[:, ::-1]).head_loads
    assert load == HeadLoad("a", 1, 2, reference=(2, 1, 1), got=(2, 1, 1))
    (load,) = counted(np.zeros_like(GATES)).head_loads
    assert load.got == (0, 0, 0)
    (load,) = counted(np.full_like(GATES, np.nan)).head_loads
    assert load.got == (2, 2, 2)


def test_flip_is_explained_below_the_bound_only():
    (margins,) = counted(GATES[:, ::-1]).margins  # both tokens chose other heads
    clear, near = margins.bins[1], margins.bins[0]
    assert (near.tokens, near.explained, near.unexplained) == (1, 1, 0)
    assert near.at_least <= 2e-4 < near.below
    assert (clear.tokens, clear.explained, clear.unexplained) == (1, 0, 1)
    assert flips(margins) == 2
    (margins,) = counted(GATES).margins
    assert flips(margins) == 0


@pytest.mark.parametrize("margin", [math.inf, math.nan])
def test_token_without_a_margin_is_excused_by_nothing(margin: float):
    (margins,) = counted(GATES[:, ::-1], np.full_like(MARGINS, margin)).margins
    assert margins.bins == (MarginBin(math.inf, math.inf, 2, 0, 2),)


def test_exact_ties_are_in_the_first_bin():
    (margins,) = counted(GATES, np.zeros_like(MARGINS)).margins
    (found,) = margins.bins
    assert (found.at_least, found.tokens) == (0.0, 2)


def test_gates_of_another_shape_are_not_counted():
    assert counted(None) == RoutingStatistics()
    assert counted(GATES[:, :1]) == RoutingStatistics()


def test_no_tokens_are_none():
    found = layer_statistics("a", None, GATES[:0], GATES[:0], MARGINS[:0], 1e-3)
    assert found.head_loads[0].tokens == 0
    assert found.margins[0].bins == ()


def test_vector_sets_add_up_layer_by_layer():
    once = counted(GATES[:, ::-1])
    both = joined([once, once])
    assert both.head_loads == (HeadLoad("a", 1, 4, (4, 2, 2), (4, 2, 2)),)
    assert [one.tokens for one in both.margins[0].bins] == [2, 2]
    assert flips(both.margins[0]) == 4


def test_loads_of_classes_are_counted_over_their_tokens():
    gates = np.concatenate([GATES, GATES[:, ::-1], GATES * 0])  # [3, 2, 3]
    load = class_load("a", 1, gates, np.asarray([1, 1, 0]))
    assert (load.classes, load.samples) == (("0", "1"), (1, 2))
    assert (load.tokens, load.on) == ((2, 4), ((0, 0, 0), (4, 2, 2)))
    assert class_load("a", 1, gates, ["b", "b", "a"]).classes == ("a", "b")


def test_classes_of_batches_add_up_by_name():
    one = RoutingStatistics(class_loads=(class_load("a", 1, GATES, [3]),))
    other = RoutingStatistics(class_loads=(class_load("a", 1, GATES, [1]),))
    (load,) = joined([one, other, one]).class_loads
    assert (load.classes, load.samples, load.tokens) == (("3", "1"), (2, 1), (4, 2))
    assert load.on == ((4, 2, 2), (2, 1, 1))


def test_comparison_counts_each_layer(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    found = moh_deploy.verify(package.root).statistics
    assert [load.path for load in found.head_loads] == [f"blocks.{i}.attn" for i in range(DEPTH)]
    for load, gates in zip(found.head_loads, package.vectors[0].gates, strict=True):
        assert load.tokens == 3 * SEQ
        assert load.got == load.reference == tuple((gates != 0).sum(axis=(0, 1)))
    assert [sum(one.tokens for one in each.bins) for each in found.margins] == [3 * SEQ] * DEPTH
    assert not any(map(flips, found.margins))


def test_comparison_shows_flips_of_the_layer_that_is_wrong(tmp_path: Path):
    wrong = write_routed(tmp_path / "wrong", "RoPE before the router")
    found = moh_deploy.verify(wrong.root).statistics
    flips = [sum(one.unexplained for one in each.bins) for each in found.margins]
    assert flips[0] == flips[2] == 0  # the gates of the reference were fed to the last one
    assert flips[1] > 0
    assert found.head_loads[1].got != found.head_loads[1].reference
