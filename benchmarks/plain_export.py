"""The baseline of export_cost.py: load a checkpoint as `moh-deploy export` does, and do nothing
more than `torch.onnx.export` with its default options.

Takes the options of `moh-deploy export`, and ignores those that are not about loading or inputs.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence

import click
import torch

from moh_deploy.cli.export import command as moh_deploy_export
from moh_deploy.config import load_config
from moh_deploy.dims import DimExpr
from moh_deploy.frontend.factory import user_code
from moh_deploy.frontend.inputs import parsed_dims
from moh_deploy.frontend.load import code_dirs, example_inputs, load
from moh_deploy.frontend.model import ModelInput
from moh_deploy.options import ExportOptions


def plain_export(as_json: bool, **options: object) -> None:
    """Write `model.onnx`, and its weights beside it, to the output directory."""
    # The options are named as the fields of ExportOptions.
    job = ExportOptions(**options)  # type: ignore[arg-type]
    config = load_config(job.config, job.overrides)
    model = load(job, config)
    inputs = example_inputs(job, config, model)
    if model.module is None:
        raise click.UsageError("the baseline needs a module; a .pt2 file is traced already.")
    job.output.mkdir()
    with user_code(code_dirs(job, config)):
        torch.onnx.export(
            model.module,
            tuple(item.value for item in inputs),
            job.output / "model.onnx",
            dynamo=True,
            dynamic_shapes=dynamic_shapes(model.module, inputs),
        )
    click.echo(json.dumps({"package": str(job.output)}))


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


if __name__ == "__main__":
    click.Command("plain_export", params=moh_deploy_export.params, callback=plain_export)()
