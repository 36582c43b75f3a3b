"""Load the model that the user's options name, in the dtype that they ask for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.export import ExportedProgram

from moh_deploy.config.checked_yaml import require_trust
from moh_deploy.config.export_config import ExportConfig
from moh_deploy.config.options import ModelOptions
from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.load.checkpoint import in_eval_mode, load_model
from moh_deploy.frontend.load.decoder import check_config, make_decoder
from moh_deploy.frontend.load.directory.load import load_directory
from moh_deploy.frontend.load.model import LoadedModel, ModelInput
from moh_deploy.system.user_code import describe_error, user_code


def load(
    options: ModelOptions, config: ExportConfig, *, needs_example: bool = False
) -> LoadedModel:
    """Load the model that the options and the configuration name.

    Args:
        needs_example: Whether the example inputs of a program have to be read.

    Raises:
        CheckpointError: The file cannot be read, is not trusted, or does not fit the module; or a
            module in memory cannot be copied.
        ConfigError: The factory is wrong, the model is neither a path nor a model, or the
            configuration names code and is not trusted.
    """
    require_trust(
        str(options.config or "--set"),
        {
            "model.factory": None if options.factory else config.model.factory,
            "model.code_dirs": list(map(str, config.model.code_dirs)),
        },
        "--trust-code",
        is_given=options.trust_code,
    )
    model = _loaded(options, config, needs_example=needs_example)
    return model if options.task is None else _for_text_generation(options, config, model)


def _for_text_generation(
    options: ModelOptions, config: ExportConfig, model: LoadedModel
) -> LoadedModel:
    if model.module is None or model.original is not None:
        raise ConfigError(
            f"--task {options.task} was given, but the model is"
            f" {'an exported program' if model.program is not None else 'an ONNX file'}, whose"
            " inputs and outputs are fixed.",
            hint="Give the module that it was made from, or leave --task out.",
        )
    if options.dtype is not None:  # its caches are of that dtype, too
        in_dtype(options, model, ())
    with user_code(code_dirs(options, config)):
        decoder = make_decoder(model.module)
    if model.directory is not None:
        check_config(model.directory, decoder)
    return replace(model, decoder=decoder)


def _loaded(options: ModelOptions, config: ExportConfig, *, needs_example: bool) -> LoadedModel:
    source = options.model
    if isinstance(source, torch.nn.Module):
        return LoadedModel(in_eval_mode(_copied(source)), None, "in_memory", None)
    if isinstance(source, (str, Path)) and Path(source).is_dir():
        return _loaded_directory(Path(source), options, config)
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


def _copied(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of the user's module, which stays as it is."""
    try:
        return copy.deepcopy(module)
    except Exception as error:  # the user's own code
        raise CheckpointError(
            f"the model cannot be copied: {describe_error(error)}.",
            hint="Set tensors that it keeps of its last run to None, or run it under"
            " torch.no_grad() first.",
        ) from error


def _loaded_directory(root: Path, options: ModelOptions, config: ExportConfig) -> LoadedModel:
    state_key = options.state_key or config.model.state_key
    if state_key is not None:
        raise ConfigError(
            f"{root}: is a model directory, for which --state-key '{state_key}' has no meaning.",
            hint="Leave it out, or name one of its files.",
        )
    module, sha256, directory = load_directory(
        root,
        factory=options.factory or config.model.factory,
        kwargs=config.model.kwargs,
        code_dirs=code_dirs(options, config),
        trust_code=options.trust_code,
        trust_pickle=options.trust_pickle,
    )
    return LoadedModel(in_eval_mode(module), None, "directory", sha256, directory=directory)


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
    _to_dtype(model.module, dtype, keep_tables=model.directory is not None)
    return model, tuple(
        replace(item, value=item.value.to(dtype)) if item.value.dtype in floats else item
        for item in inputs
    )


def _to_dtype(module: torch.nn.Module, dtype: torch.dtype, *, keep_tables: bool) -> None:
    """Bring a module to a dtype.

    Args:
        keep_tables: Leave what no checkpoint holds: tables of positions, whose numbers have to be
            exact, and which Hugging Face keeps in float32, too.
    """
    if not keep_tables:
        module.to(dtype)
        return
    for part in module.modules():
        tables = part._non_persistent_buffers_set
        tensors: list[torch.Tensor] = [*part.parameters(recurse=False)]
        tensors += [
            buffer
            for name, buffer in part._buffers.items()
            if buffer is not None and name not in tables
        ]
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def code_dirs(options: ModelOptions, config: ExportConfig) -> tuple[Path, ...]:
    """Directories of the user's code, those of the options first."""
    return (*options.code_dirs, *config.model.code_dirs)
