"""The export that PyTorch has by itself, without anything of ours: a baseline."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch

from moh_deploy.config.dims import DimExpr
from moh_deploy.errors import ExportError
from moh_deploy.frontend.emit import cause, quiet
from moh_deploy.frontend.inputs.examples import parsed_dims
from moh_deploy.frontend.inputs.npz_inputs import inputs_of_package
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
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
    try:
        with quiet():
            if model.program is not None:
                torch.onnx.export(
                    model.program, (), path, dynamo=True, input_names=names, verbose=False
                )
                return
            assert model.module is not None
            torch.onnx.export(
                model.module,
                tuple(item.value for item in inputs),
                path,
                dynamo=True,
                input_names=names,
                dynamic_shapes=dynamic_shapes(model.module, inputs),
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"torch.onnx.export cannot export the original by itself: {cause(error)}.",
            hint="Leave the baseline plain-onnx out, or name an ONNX file of your own.",
        ) from error


def dynamic_shapes(
    module: torch.nn.Module, inputs: Sequence[ModelInput]
) -> tuple[object, ...] | None:
    """Return the dynamic axes of each positional argument; those of `*args` are one tuple."""
    dims = {expr.name: torch.export.Dim(expr.name) for i in inputs for expr in _expressions(i)}
    shapes = [
        {axis: _dimension(expr, dims) for axis, expr in parsed_dims(item).items()}
        for item in inputs
    ]
    kinds = [one.kind for one in inspect.signature(module.forward).parameters.values()]
    if not dims:
        return None
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    variadic = tuple(shapes[named:])
    return (*shapes[:named], variadic) if variadic else tuple(shapes)


def _expressions(item: ModelInput) -> Sequence[DimExpr]:
    return tuple(parsed_dims(item).values())


def _dimension(expr: DimExpr, dims: dict[str, torch.export.Dim]) -> object:
    dim = dims[expr.name]
    scaled = dim if expr.multiplier == 1 else expr.multiplier * dim
    return scaled if expr.offset == 0 else scaled + expr.offset
