"""The zoo, animal by animal: what is recognised, and that rewriting it changes no result."""

import pytest

from tests.frontend.rewritten import checked_layers
from tests.frontend.traced import traced
from tests.nightly import one_in, sampled
from tests.zoo import MISSED, ZOO, ExpectedLayer, ZooModel


@sampled(5)
@pytest.mark.parametrize("animal", one_in(10, ZOO), ids=lambda animal: animal.name)
def test_layers_are_recognised_and_rewriting_changes_no_result(animal: ZooModel):
    assert rewritten_layers(animal) == animal.expected.layers


@sampled(3)
@pytest.mark.parametrize("animal", MISSED, ids=lambda animal: animal.name)
def test_what_is_missed_stays_right_nevertheless(animal: ZooModel):
    # A model that is no longer missed belongs among the others.
    assert rewritten_layers(animal) != animal.expected.layers


def rewritten_layers(animal: ZooModel) -> tuple[ExpectedLayer, ...]:
    module = animal.build().eval()
    return checked_layers(traced(module, animal.inputs()), module, animal)
