"""Make the example inputs that the user's options and configuration describe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.config.options import ExportOptions
from moh_deploy.frontend.inputs.decoder_inputs import decoder_inputs, refuse_other_inputs
from moh_deploy.frontend.inputs.examples import build_call
from moh_deploy.frontend.inputs.onnx_inputs import build_onnx_inputs
from moh_deploy.frontend.inputs.padding import named_tokens
from moh_deploy.frontend.inputs.program_inputs import build_program_inputs
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.validate.reference.samples import ALL_TOKENS


def example_inputs(
    options: ExportOptions, config: ExportConfig, model: LoadedModel
) -> tuple[LoadedModel, tuple[ModelInput, ...]]:
    """Return the inputs to trace the model with, and the model with the call that takes them.

    Raises:
        ConfigError: There are none, or they contradict each other, the model or the program.
    """
    if model.decoder is not None:
        assert model.module is not None
        refuse_other_inputs(
            [
                ("--input", options.input_specs or config.inputs),
                ("--dynamic", options.dynamic),
                ("--output-name", options.output_names or config.outputs),
                ("--valid-tokens", asked_mask(options, config)),
                ("inputs in memory", options.inputs and not isinstance(options.inputs, Path)),
            ]
        )
        npz = options.inputs if isinstance(options.inputs, Path) else None
        decoded = decoder_inputs(model.module, model.decoder, npz)
        return replace(model, call=decoded.call), decoded.inputs
    if model.original is not None:
        inputs = build_onnx_inputs(
            model.original.source,
            config,
            npz=options.inputs,
            specs=options.input_specs,
            dynamic=options.dynamic,
        )
    elif model.program is not None:
        inputs = build_program_inputs(
            model.program,
            config,
            npz=options.inputs,
            specs=options.input_specs,
            dynamic=options.dynamic,
        )
    else:
        assert model.module is not None
        bound = build_call(
            model.module.forward,
            config,
            npz=options.inputs,
            specs=options.input_specs,
            dynamic=options.dynamic,
        )
        model, inputs = replace(model, call=bound.call, unknown=bound.unknown), bound.inputs
    mask = asked_mask(options, config)
    if mask is None or (mask == ALL_TOKENS and all(item.name != mask for item in inputs)):
        return model, inputs
    described = model.program is None or bool(options.input_specs or config.inputs)
    return model, named_tokens(inputs, mask, made=options.inputs is None and described)


def asked_mask(options: ExportOptions, config: ExportConfig) -> str | None:
    """Return what the user says of valid tokens: the name of an input, or `all`."""
    return options.valid_tokens or config.valid_tokens
