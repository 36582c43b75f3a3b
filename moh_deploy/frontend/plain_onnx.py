"""The export that PyTorch has by itself, without anything of ours: a baseline."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from moh_deploy.errors import ExportError
from moh_deploy.frontend.emit import cause, quiet
from moh_deploy.frontend.inputs.npz_inputs import inputs_of_package
from moh_deploy.frontend.load.call import positional, taking_tensors
from moh_deploy.frontend.load.model import LoadedModel
from moh_deploy.frontend.trace import dynamic_shapes
from moh_deploy.package import OnnxPackage


def write_plain_onnx(model: LoadedModel, package: OnnxPackage, path: Path) -> None:
    """Export a model with `torch.onnx.export` and its defaults.

    Args:
        model: The module or program; the sizes that a program takes are part of it.
        package: Says which inputs there are, and which of their sizes are dynamic.
        path: File to write; weights may lie beside it.

    Raises:
        ExportError: PyTorch cannot export it.
    """
    inputs = inputs_of_package(package.vectors[0].inputs, package.manifest)
    # The same names as the package's: by name no one can be taken for another.
    names = [item.name for item in inputs]
    export = partial(torch.onnx.export, dynamo=True, input_names=names, verbose=False)
    try:
        with quiet():
            if model.program is not None:
                export(model.program, (), path)
                return
            assert model.module is not None
            arguments = tuple(item.value for item in inputs)
            call = package.manifest.call or positional(names)
            with taking_tensors(model.module, call) as parameters:
                shapes = dynamic_shapes(parameters, inputs, bounds={})
                export(model.module, arguments, path, dynamic_shapes=shapes)
    except Exception as error:
        raise ExportError(
            f"torch.onnx.export cannot export the original by itself: {cause(error)}.",
            hint="Leave the baseline plain-onnx out, or name an ONNX file of your own.",
        ) from error
