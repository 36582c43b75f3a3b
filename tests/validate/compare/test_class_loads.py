from __future__ import annotations

from dataclasses import replace

import numpy as np

from moh_deploy.validate.accuracy.task import Labelling
from moh_deploy.validate.compare.routing_statistics import ClassLoads, main_classes
from tests.handmade_package import LAYER

LABELS = np.array([0, 0, 1, -100])
GATES = np.array([[[1, 0], [2, 0]], [[0, 1], [1, 0]], [[0, 1], [0, 3]], [[9, 9], [9, 9]]], float)


def test_tokens_are_counted_over_all_batches():
    loads = ClassLoads([LAYER], main_classes([LABELS], Labelling()))
    loads.add({"gates_0": GATES[:1]}, LABELS[:1])
    loads.add({"gates_0": GATES[1:]}, LABELS[1:])
    (found,) = loads.statistics.class_loads
    assert (found.classes, found.samples) == (("0", "1"), (2, 1))
    assert (found.tokens, found.on) == ((4, 2), ((3, 1), (0, 2)))


def test_padding_is_no_token_of_a_class():
    loads = ClassLoads([LAYER], main_classes([LABELS], Labelling()))
    loads.add({"gates_0": GATES}, LABELS, np.array([[1, 0], [1, 1], [0, 1], [1, 1]], np.bool_))
    (found,) = loads.statistics.class_loads
    assert (found.samples, found.tokens, found.on) == ((2, 1), (3, 1), ((2, 1), (0, 1)))


def test_without_gates_or_classes_there_are_none():
    layers = [LAYER, replace(LAYER, gates="gates_1")]
    loads = ClassLoads(layers, main_classes([LABELS], Labelling()))
    loads.add({"gates_0": GATES[:2]}, LABELS)  # as if windows were counted
    assert loads.statistics.class_loads == ()
    for labels in (LABELS / 2, LABELS[:, None]):
        loads = ClassLoads(layers, main_classes([labels], Labelling()))
        loads.add({"gates_0": GATES}, labels)
        assert loads.statistics.class_loads == ()


def test_of_many_classes_those_with_most_samples_are_kept():
    labels = np.repeat(np.arange(150), np.where(np.arange(150) < 50, 1, 2))
    assert sorted(main_classes([labels], Labelling())) == list(range(50, 150))
