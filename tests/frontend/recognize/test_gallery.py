"""The code of docs/recognition-gallery.md becomes what the page says of it."""

import re
from pathlib import Path
from typing import Any

import pytest

from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.ops.routers import FORMS
from tests.frontend.rewritten import checked_layers
from tests.frontend.traced import traced
from tests.nightly import nightly
from tests.zoo.model import Expected, ZooModel, noise, seeded

PAGE = Path(__file__).parents[3] / "docs" / "recognition-gallery.md"


def _classes() -> dict[str, Any]:
    """Return the modules of the page, by name."""
    defined: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        exec(block, defined)
    layer = defined["Layer"]
    return {
        name: value
        for name, value in defined.items()
        if isinstance(value, type) and issubclass(value, layer)
    }


CLASSES = _classes()


def tokens(batch: int = 2, seq: int = 7) -> tuple[ModelInput, ...]:
    return (ModelInput("x", noise(batch, seq, 64), {0: "batch", 1: "seq"}),)


@nightly
@pytest.mark.parametrize("name", CLASSES)
def test_form_is_recognised_as_its_docstring_says(name: str):
    animal = ZooModel(name, seeded(CLASSES[name]), tokens, Expected(), "")
    module = animal.build().eval()
    (layer,) = checked_layers(traced(module, animal.inputs()), module, animal)
    assert layer.replaced
    assert CLASSES[name].__doc__.endswith(f": {layer.router}.")


def test_gallery_has_every_router_form():
    shown = {value.__doc__.rsplit(": ")[1].rstrip(".") for value in CLASSES.values()}
    assert shown == {form.name for form in FORMS}
