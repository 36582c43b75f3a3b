"""Make the example inputs that the user's options and configuration describe."""

from __future__ import annotations

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.config.options import ExportOptions
from moh_deploy.frontend.inputs.examples import build_inputs
from moh_deploy.frontend.inputs.program_inputs import build_program_inputs
from moh_deploy.frontend.load.model import LoadedModel, ModelInput


def example_inputs(
    options: ExportOptions, config: ExportConfig, model: LoadedModel
) -> tuple[ModelInput, ...]:
    """Return the positional arguments to trace the model with.

    Raises:
        ConfigError: There are none, or they contradict each other or the program.
    """
    if model.program is not None:
        return build_program_inputs(
            model.program,
            config,
            npz=options.inputs,
            specs=options.input_specs,
            dynamic=options.dynamic,
        )
    return build_inputs(
        config, npz=options.inputs, specs=options.input_specs, dynamic=options.dynamic
    )
