"""Models with what is true of them beside, written from the idioms of public code.

Their authors knew neither the recogniser nor its tests; the files are as they wrote them.
"""

import importlib
from pathlib import Path
from types import ModuleType

import torch

from moh_deploy.frontend.load.model import ModelInput
from tests.zoo.model import Expected, ExpectedLayer, ZooModel

_FOLDER = Path(__file__).parent / "as_written"


def _model(written: ModuleType) -> ZooModel:
    def inputs(**sizes: int) -> tuple[ModelInput, ...]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(100)
            values = written.inputs(**{**written.SIZES, **sizes})
        return tuple(
            ModelInput(name, value, written.DYNAMIC.get(name, {})) for name, value in values.items()
        )

    gated, sparse = written.TRUTH["gated"], written.TRUTH["sparse"]
    layers = tuple(ExpectedLayer(0, None, None, None, "", i < sparse) for i in range(gated))
    name = written.__name__.rpartition(".")[2]
    return ZooModel(name, written.build, inputs, Expected(layers), written.TRUTH["notes"])


MODELS = [
    _model(importlib.import_module(f"tests.strangers.as_written.{path.stem}"))
    for path in sorted(_FOLDER.glob("[a-z]*.py"))
]
