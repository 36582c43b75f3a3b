"""Load the model that the user's options name, in the dtype that they ask for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.export import ExportedProgram

from moh_deploy.config.export_config import ExportConfig
from moh_deploy.config.options import ModelOptions
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.load.checkpoint import in_eval_mode, load_model
from moh_deploy.frontend.load.model import LoadedModel, ModelInput


def load(
    options: ModelOptions, config: ExportConfig, *, needs_example: bool = False
) -> LoadedModel:
    """Load the model that the options and the configuration name.

    Args:
        needs_example: Whether the example inputs of a program have to be read.

    Raises:
        CheckpointError: The file cannot be read, is not trusted, or does not fit the module.
        ConfigError: The factory is wrong, or the model is neither a path nor a model.
    """
    source = options.model
    if isinstance(source, torch.nn.Module):
        return LoadedModel(in_eval_mode(copy.deepcopy(source)), None, "in_memory", None)
    if isinstance(source, ExportedProgram):
        return LoadedModel(None, source, "in_memory", None)
    if not isinstance(source, (str, Path)):
        raise ConfigError(
            f"the model is a {type(source).__name__}; expected a path, a torch.nn.Module or a"
            " torch.export.ExportedProgram."
        )
    return load_model(
        Path(source),
        factory=options.factory or config.model.factory,
        kwargs=config.model.kwargs,
        code_dirs=code_dirs(options, config),
        state_key=options.state_key or config.model.state_key,
        trust_pickle=options.trust_pickle,
        needs_example=needs_example,
    )


def in_dtype(
    options: ModelOptions, model: LoadedModel, inputs: Sequence[ModelInput]
) -> tuple[LoadedModel, tuple[ModelInput, ...]]:
    """Bring the model, and the inputs that have its floating-point dtype, to the dtype asked for.

    Raises:
        ConfigError: The model is an exported program, whose dtypes are part of it.
    """
    if options.dtype is None:
        return model, tuple(inputs)
    if model.original is not None:
        raise ConfigError(
            f"--dtype {options.dtype} was given, but the model is an ONNX file, whose dtypes are"
            " fixed.",
            hint=f"Export it as it is, then: moh-deploy precision PACKAGE --to {options.dtype}.",
        )
    if model.module is None:
        raise ConfigError(
            f"--dtype {options.dtype} was given, but the model is an exported program, whose dtypes"
            " are fixed.",
            hint="Change the dtype of the module before torch.export.",
        )
    dtype: torch.dtype = getattr(torch, options.dtype)
    floats = {tensor.dtype for tensor in model.module.parameters() if tensor.is_floating_point()}
    model.module.to(dtype)
    return model, tuple(
        replace(item, value=item.value.to(dtype)) if item.value.dtype in floats else item
        for item in inputs
    )


def code_dirs(options: ModelOptions, config: ExportConfig) -> tuple[Path, ...]:
    """Directories of the user's code, those of the options first."""
    return (*options.code_dirs, *config.model.code_dirs)
