"""Load a model, in eval mode and in the dtype that is asked for."""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch.export import ExportedProgram

from moh_deploy.config.export_config import ModelSection
from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.load.checkpoint_file import load_file
from moh_deploy.frontend.load.decoder import check_config, make_decoder
from moh_deploy.frontend.load.load_directory import load_directory
from moh_deploy.frontend.load.model import LoadedModel
from moh_deploy.frontend.load.pt2 import drop_derived_sizes
from moh_deploy.system.suggest import shortened
from moh_deploy.system.user_code import describe_error, user_code


def load(
    source: object,
    config: ModelSection,
    *,
    task: str | None = None,
    dtype: str | None = None,
    trust_pickle: bool = False,
    trust_code: bool = False,
    needs_example: bool = False,
) -> LoadedModel:
    """Load a model, in eval mode.

    Args:
        source: Path of a checkpoint, ONNX file or model directory, or a module or exported program
            in memory.
        config: How its module is built.
        task: `text-generation` gives a language model the inputs and outputs that this takes.
        dtype: The floating-point dtype to bring it to; None keeps its own.
        trust_pickle: Whether code that the file brings along may be executed.
        trust_code: Whether code that a model directory brings along may be run.
        needs_example: Whether the example inputs of a program have to be read.

    Raises:
        CheckpointError: The file cannot be read, is not trusted, or does not fit the module; or a
            module in memory cannot be copied.
        ConfigError: The factory is wrong, the model is neither a path nor a model, or its inputs or
            dtypes are fixed.
    """
    with user_code(config.code_dirs):
        if isinstance(source, torch.nn.Module):
            try:
                module = copy.deepcopy(source)  # the user's module stays as it is
            except Exception as error:  # the user's own code
                raise CheckpointError(
                    f"the model cannot be copied: {describe_error(error)}.",
                    hint="Set tensors that it keeps of its last run to None, or run it under"
                    " torch.no_grad() first.",
                ) from error
            model = LoadedModel(module, None, "in_memory", None)
        elif isinstance(source, ExportedProgram):
            model = LoadedModel(None, source, "in_memory", None)
        elif not isinstance(source, (str, Path)):
            raise ConfigError(
                f"the model is a {type(source).__name__}; expected a path, a torch.nn.Module or a"
                " torch.export.ExportedProgram."
            )
        elif Path(source).is_dir():
            model = load_directory(
                Path(source), config, trust_code=trust_code, trust_pickle=trust_pickle
            )
        else:
            model = load_file(
                Path(source), config, trust_pickle=trust_pickle, needs_example=needs_example
            )
        if model.program is not None:
            drop_derived_sizes(model.program)
        is_fixed = model.module is None or model.original is not None
        if is_fixed and task is not None:
            raise ConfigError(
                f"--task {task} was given, but the model is"
                f" {'an exported program' if model.program is not None else 'an ONNX file'}, whose"
                " inputs and outputs are fixed.",
                hint="Give the module that it was made from, or leave --task out.",
            )
        if model.module is not None and model.original is None:
            in_eval_mode(model.module)
        if dtype is not None:
            model = _in_dtype(model, dtype)
        if task is None or model.module is None:
            return model
        decoder = make_decoder(model.module)
        if model.directory is not None:
            check_config(model.directory, decoder)
        return replace(model, decoder=decoder)


# Of quantisation-aware training, and what measures ranges before quantisation.
_SIMULATIONS = ("torch.ao.quantization.fake_quantize", "torch.ao.quantization.observer")


def in_eval_mode(module: torch.nn.Module) -> torch.nn.Module:
    """Put a module on the CPU, it and everything in it in eval mode, and turn gradients off.

    Raises:
        CheckpointError: A lazy module has not run yet, so that it has no weights; weights are on
            the meta device, or quantised.
    """
    for name, part in module.named_modules():
        for kind in (type(part), *map(type, part.parameters(recurse=False))):
            # Quantised by torch.ao or torchao: its products are code of their own.
            package, *inner = kind.__module__.split(".")
            if package == "torchao" or (package == "torch" and "quantized" in inner):
                raise CheckpointError(
                    f"the model is quantised: '{name or 'the model'}' is or holds a"
                    f" {kind.__module__}.{kind.__name__}.",
                    hint="Export the checkpoint in floating point as it was before, then lower the"
                    " package: moh-deploy precision.",
                )
            if any(base.__module__ in _SIMULATIONS for base in kind.__mro__):
                raise CheckpointError(
                    f"the model simulates quantisation: '{name or 'the model'}' is a"
                    f" {kind.__module__}.{kind.__name__}, whose code branches on values.",
                    hint="Export the float model, with the weights that were trained, then lower"
                    " the package: moh-deploy precision --to int8.",
                )
    lazy = [
        name
        for name, parameter in module.named_parameters()
        if torch.nn.parameter.is_lazy(parameter)
    ]
    if lazy:
        raise CheckpointError(
            f"the model has parameters without a shape or values: {shortened(lazy)}. Its lazy"
            " modules have never run.",
            hint="Run it once on an example, and save it then.",
        )
    tensors = (*module.named_parameters(), *module.named_buffers())
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        raise CheckpointError(
            f"the model has tensors without values, on the meta device: {shortened(empty)}.",
            hint="Build it on the CPU, so that its weights have a place.",
        )
    module.cpu().requires_grad_(False)
    module.eval()
    # Modules that override train(), to freeze some layer, may not pass the mode on.
    for part in module.modules():
        part.training = False
    return module


def _in_dtype(model: LoadedModel, name: str) -> LoadedModel:
    """Bring a model to a floating-point dtype; its inputs follow, see `input_dtypes`.

    Raises:
        ConfigError: The model is an exported program or an ONNX file, whose dtypes are part of it.
    """
    if model.original is not None:
        raise ConfigError(
            f"--dtype {name} was given, but the model is an ONNX file, whose dtypes are fixed.",
            hint=f"Export it as it is, then: moh-deploy precision PACKAGE --to {name}.",
        )
    if model.module is None:
        raise ConfigError(
            f"--dtype {name} was given, but the model is an exported program, whose dtypes are"
            " fixed.",
            hint="Change the dtype of the module before torch.export.",
        )
    dtype: torch.dtype = getattr(torch, name)
    floats = {tensor.dtype for tensor in model.module.parameters() if tensor.is_floating_point()}
    if model.directory is None:
        model.module.to(dtype)
    for part in model.module.modules() if model.directory is not None else ():
        # Tables of positions, which no checkpoint holds, have to be exact: Hugging Face keeps them
        # in float32, too.
        named = part._buffers.items()
        buffers = [b for name, b in named if name not in part._non_persistent_buffers_set]
        for tensor in (*part.parameters(recurse=False), *buffers):
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
    return replace(model, input_dtypes=dict.fromkeys(floats, dtype))
