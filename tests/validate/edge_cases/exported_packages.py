"""Packages of models of the zoo."""

from pathlib import Path

import pytest

from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.package import OnnxPackage
from tests.exporting import export, prove_in_this_process
from tests.zoo import ZOO


def exported(name: str, output: Path) -> OnnxPackage:
    """Export a model of the zoo, every size that it has dynamic."""
    model = next(entry for entry in ZOO if entry.name == name)
    example = model.inputs()
    axes = [f"{i.name}:{','.join(f'{a}={d}' for a, d in i.dims.items())}" for i in example]
    with pytest.MonkeyPatch.context() as patch:
        prove_in_this_process(patch)
        inputs = {item.name: to_numpy(item.value) for item in example}
        export(model.build(), output, inputs=inputs, dynamic=tuple(axes))
    return OnnxPackage.open(output)
