"""The baseline of export_cost.py: load a checkpoint as `moh-deploy export` does, and do nothing
more than `torch.onnx.export` with its default options.

Takes the options of `moh-deploy export`, and ignores those that are not about loading or inputs.
"""

import json

import click
import torch

from moh_deploy.cli.make import export_command
from moh_deploy.config.export_config import resolved_config
from moh_deploy.config.options import ExportOptions
from moh_deploy.frontend.inputs.example_inputs import example_inputs
from moh_deploy.frontend.inputs.sizes import dynamic_shapes
from moh_deploy.frontend.load.load import load
from moh_deploy.frontend.load.model import positional, taking_tensors
from moh_deploy.system.user_code import user_code


def plain_export(as_json: bool, verbose: bool, **options: object) -> None:
    """Write `model.onnx`, and its weights beside it, to the output directory."""
    del as_json, verbose  # The answer is one JSON object, whatever they say.
    # The options are named as the fields of ExportOptions.
    job = ExportOptions(**options)  # type: ignore[arg-type]
    config = resolved_config(job)
    model = load(
        job.model,
        config.model,
        task=job.task,
        trust_pickle=job.trust_pickle,
        trust_code=job.trust_code,
        needs_example=True,
    )
    model, inputs = example_inputs(
        model, config, npz=job.inputs, specs=job.input_specs, dynamic=job.dynamic
    )
    if model.module is None:
        raise click.UsageError("the baseline needs a module; a .pt2 file is traced already.")
    job.output.mkdir()
    call = model.call or positional([item.name for item in inputs])
    with user_code(config.model.code_dirs), taking_tensors(model.module, call) as names:
        torch.onnx.export(
            model.module,
            tuple(item.value for item in inputs),
            job.output / "model.onnx",
            dynamo=True,
            dynamic_shapes=dynamic_shapes(names, inputs, bounds={}),
        )
    click.echo(json.dumps({"package": str(job.output)}))


if __name__ == "__main__":
    click.Command("plain_export", params=export_command.params, callback=plain_export)()
