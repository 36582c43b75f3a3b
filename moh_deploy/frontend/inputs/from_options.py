"""Make the example inputs that the user's options and configuration describe."""

from __future__ import annotations

from dataclasses import replace

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.config.options import ExportOptions
from moh_deploy.frontend.inputs.examples import build_call
from moh_deploy.frontend.inputs.program_inputs import build_program_inputs
from moh_deploy.frontend.load.model import LoadedModel, ModelInput


def example_inputs(
    options: ExportOptions, config: ExportConfig, model: LoadedModel
) -> tuple[LoadedModel, tuple[ModelInput, ...]]:
    """Return the inputs to trace the model with, and the model with the call that takes them.

    Raises:
        ConfigError: There are none, or they contradict each other, the model or the program.
    """
    if model.program is not None:
        return model, build_program_inputs(
            model.program,
            config,
            npz=options.inputs,
            specs=options.input_specs,
            dynamic=options.dynamic,
        )
    assert model.module is not None
    bound = build_call(
        model.module.forward,
        config,
        npz=options.inputs,
        specs=options.input_specs,
        dynamic=options.dynamic,
    )
    return replace(model, call=bound.call, unknown=bound.unknown), bound.inputs
