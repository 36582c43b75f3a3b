"""Which layers a sentence names."""

from dataclasses import replace

from tests.handmade_package import LAYER
from tests.validate.mutations.verdicts import named_in

LAYERS = tuple(replace(LAYER, path=path) for path in ("a.1", "a.1.b", "a.10", "model", "model#2"))


def test_layer_is_named_in_quotes():
    assert named_in("gates of layer 'a.1' differ", LAYERS) == ("a.1",)
    assert named_in("gates of layer 'model#2' differ", LAYERS) == ("model#2",)


def test_layer_with_dots_is_named_without_quotes():
    assert named_in("it does not, in a.1, a.10.", LAYERS) == ("a.1", "a.10")
    assert named_in("it does not, in a.1.b", LAYERS) == ("a.1.b",)


def test_word_that_is_a_path_too_names_no_layer():
    assert named_in("the model differs", LAYERS) == ()
