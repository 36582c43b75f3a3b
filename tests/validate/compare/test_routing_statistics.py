import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moh_deploy
from moh_deploy.report.document import MarginBin, MarginHistogram, Text
from moh_deploy.report.html.page import page_map
from moh_deploy.system.npz import Array
from moh_deploy.validate.accuracy.task import Labelling
from moh_deploy.validate.compare.routing_statistics import (
    MOST_CLASSES,
    ClassLoad,
    ClassLoads,
    HeadLoad,
    RecordedLoad,
    RoutingStatistics,
    class_load,
    class_map,
    joined,
    layer_statistics,
    main_classes,
    routing_sections,
)
from tests.handmade_package import LAYER, vectors
from tests.routed_package import DEPTH, SEQ, write_routed

GATES = np.asarray([[[1.0, 0.5, 0.0], [1.0, 0.0, 0.5]]], np.float32)  # [1, 2, 3]
MARGINS = np.asarray([[0.5, 2e-4]], np.float32)


def flips(histogram: MarginHistogram) -> int:
    """Count the tokens that chose other heads."""
    return sum(item.explained + item.unexplained for item in histogram.bins)


def counted(got: Array | None, margins: Array = MARGINS, bound: float = 1e-3) -> RoutingStatistics:
    flipped = None
    if got is not None and got.shape == GATES.shape:
        flipped = np.asarray(((got != 0) != (GATES != 0)).any(axis=-1))
    return layer_statistics("a", 1, got, GATES, margins, bound, flipped)


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


def test_exact_ties_are_in_the_first_bin_and_what_does_not_fit_in_none():
    (margins,) = counted(GATES, np.zeros_like(MARGINS)).margins
    (found,) = margins.bins
    assert (found.at_least, found.tokens) == (0.0, 2)
    assert counted(None) == counted(GATES[:, :1]) == RoutingStatistics()
    flipped = np.zeros(MARGINS[:0].shape, np.bool_)
    nothing = layer_statistics("a", None, GATES[:0], GATES[:0], MARGINS[:0], 1e-3, flipped)
    assert (nothing.head_loads[0].tokens, nothing.margins[0].bins) == (0, ())


def test_vector_sets_add_up_layer_by_layer():
    once = counted(GATES[:, ::-1])
    both = joined([once, once])
    assert both.head_loads == (HeadLoad("a", 1, 4, (4, 2, 2), (4, 2, 2)),)
    assert [margin.tokens for margin in both.margins[0].bins] == [2, 2]
    assert flips(both.margins[0]) == 4


def test_loads_of_classes_are_counted_over_their_tokens():
    gates = np.concatenate([GATES, GATES[:, ::-1], GATES * 0])  # [3, 2, 3]
    load = class_load("a", 1, gates, np.asarray([1, 1, 0]))
    assert (load.classes, load.samples) == (("0", "1"), (1, 2))
    assert (load.tokens, load.on) == ((2, 4), ((0, 0, 0), (4, 2, 2)))
    assert class_load("a", 1, gates, ["b", "b", "a"]).classes == ("a", "b")
    # Classes of batches add up by name.
    third, first = (RoutingStatistics((), (), (class_load("a", 1, GATES, [i]),)) for i in (3, 1))
    (load,) = joined([third, first, third]).class_loads
    assert (load.classes, load.samples, load.tokens) == (("3", "1"), (2, 1), (4, 2))
    assert load.on == ((4, 2, 2), (2, 1, 1))


def test_comparison_counts_each_layer(tmp_path: Path):
    package = write_routed(tmp_path / "package")
    found = moh_deploy.verify(package.root).statistics
    assert [load.path for load in found.head_loads] == [f"blocks.{i}.attn" for i in range(DEPTH)]
    for load, gates in zip(found.head_loads, package.vectors[0].gates, strict=True):
        assert load.tokens == 3 * SEQ
        assert load.got == load.reference == tuple((gates != 0).sum(axis=(0, 1)))
    assert [sum(item.tokens for item in each.bins) for each in found.margins] == [3 * SEQ] * DEPTH
    assert not any(map(flips, found.margins))


def test_comparison_shows_flips_of_the_layer_that_is_wrong(tmp_path: Path):
    wrong = write_routed(tmp_path / "wrong", "RoPE before the router")
    found = moh_deploy.verify(wrong.root).statistics
    flips = [sum(item.unexplained for item in each.bins) for each in found.margins]
    assert flips[0] == flips[2] == 0  # the gates of the reference were fed to the last one
    assert flips[1] > 0
    assert found.head_loads[1].got != found.head_loads[1].reference


LABELS = np.array([0, 0, 1, -100])
OPEN = np.array([[[1, 0], [2, 0]], [[0, 1], [1, 0]], [[0, 1], [0, 3]], [[9, 9], [9, 9]]], float)


def test_tokens_are_counted_over_all_batches_and_padding_is_none():
    loads = ClassLoads([LAYER], main_classes([LABELS], Labelling()))
    loads.add({"gates_0": OPEN[:1]}, LABELS[:1])
    loads.add({"gates_0": OPEN[1:]}, LABELS[1:])
    (found,) = loads.statistics.class_loads
    assert (found.classes, found.samples) == (("0", "1"), (2, 1))
    assert (found.tokens, found.on) == ((4, 2), ((3, 1), (0, 2)))
    loads = ClassLoads([LAYER], main_classes([LABELS], Labelling()))
    loads.add({"gates_0": OPEN}, LABELS, np.array([[1, 0], [1, 1], [0, 1], [1, 1]], np.bool_))
    (found,) = loads.statistics.class_loads
    assert (found.samples, found.tokens, found.on) == ((2, 1), (3, 1), ((2, 1), (0, 1)))


def test_without_gates_or_classes_there_are_none():
    layers = [LAYER, replace(LAYER, gates="gates_1")]
    loads = ClassLoads(layers, main_classes([LABELS], Labelling()))
    loads.add({"gates_0": OPEN[:2]}, LABELS)  # as if windows were counted
    assert loads.statistics.class_loads == ()
    for labels in (LABELS / 2, LABELS[:, None]):
        loads = ClassLoads(layers, main_classes([labels], Labelling()))
        loads.add({"gates_0": OPEN}, labels)
        assert loads.statistics.class_loads == ()


def test_of_many_classes_those_with_most_samples_are_kept():
    labels = np.repeat(np.arange(150), np.where(np.arange(150) < 50, 1, 2))
    assert sorted(main_classes([labels], Labelling())) == list(range(50, 150))


def test_number_of_cells_that_differ_is_told():
    load = HeadLoad("a", None, 1000, (500, 501), (500, 500))
    sections = routing_sections(RoutingStatistics((load,)), 0, has_routing=True)
    (section,) = sections
    (about, _) = section.blocks
    assert isinstance(about, Text)
    assert "1 cells are framed" in about.text


def test_of_many_classes_those_with_most_samples_are_shown():
    count = MOST_CLASSES + 5
    numbers = tuple(range(count - 1, -1, -1))
    load = ClassLoad("a", 0, tuple(map(str, numbers)), numbers, numbers, ((1,),) * count)
    shown = page_map(class_map(load))
    assert shown.content.left_out == 5
    assert [row.name for row in shown.blocks[0].rows] == [str(i) for i in range(5, count)]
    assert shown.blocks[0].rows[-1].cells[0].package.text == f"{100 / (count - 1):.0f}"
    assert class_map(ClassLoad("a", None, (), (), (), ())).rows == ()


def test_recorded_heads_are_counted_over_all_runs():
    runs = [vectors(batch=2, seq=3), vectors(batch=1, seq=5, seed=1)]
    (load,) = RecordedLoad.of([LAYER], runs)
    on = [
        sum(int(gate != 0) for run in runs for gate in run.gates[0][..., h].flat) for h in range(4)
    ]
    assert load == RecordedLoad(LAYER.path, None, 2 * 3 + 1 * 5, tuple(on))
    assert RecordedLoad.of([LAYER], []) == (RecordedLoad(LAYER.path, None, 0, ()),)
