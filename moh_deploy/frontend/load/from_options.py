"""Load the model that the user's options name, in eval mode and in the dtype that they ask for."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch.export import ExportedProgram

from moh_deploy.config.checked_yaml import require_trust
from moh_deploy.config.export_config import ExportConfig
from moh_deploy.config.options import ModelOptions
from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.load import weights
from moh_deploy.frontend.load.decoder import check_config, make_decoder
from moh_deploy.frontend.load.directory.load import load_directory
from moh_deploy.frontend.load.fileform import detect_form, read_weights
from moh_deploy.frontend.load.model import CheckpointForm, LoadedModel, ModelInput
from moh_deploy.frontend.load.onnx_graph.file import OnnxOriginal, read_onnx
from moh_deploy.frontend.load.onnx_graph.module import OnnxModule
from moh_deploy.frontend.load.pt2 import load_program
from moh_deploy.runtime.base import FUNCTION_BODIES
from moh_deploy.runtime.open_runner import onnx_file
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.suggest import shortened
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
    if options.task is None:
        return model
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
    factory = options.factory or config.model.factory
    state_key = options.state_key or config.model.state_key
    if isinstance(source, torch.nn.Module):
        try:
            module = copy.deepcopy(source)  # the user's module stays as it is
        except Exception as error:  # the user's own code
            raise CheckpointError(
                f"the model cannot be copied: {describe_error(error)}.",
                hint="Set tensors that it keeps of its last run to None, or run it under"
                " torch.no_grad() first.",
            ) from error
        return LoadedModel(in_eval_mode(module), None, "in_memory", None)
    if isinstance(source, ExportedProgram):
        return LoadedModel(None, source, "in_memory", None)
    if not isinstance(source, (str, Path)):
        raise ConfigError(
            f"the model is a {type(source).__name__}; expected a path, a torch.nn.Module or a"
            " torch.export.ExportedProgram."
        )
    path = Path(source)
    if not path.is_dir():
        return load_model(
            path,
            factory=factory,
            kwargs=config.model.kwargs,
            code_dirs=code_dirs(options, config),
            state_key=state_key,
            trust_pickle=options.trust_pickle,
            needs_example=needs_example,
        )
    if state_key is not None:
        raise ConfigError(
            f"{path}: is a model directory, for which --state-key '{state_key}' has no meaning.",
            hint="Leave it out, or name one of its files.",
        )
    module, sha256, directory = load_directory(
        path,
        factory=factory,
        kwargs=config.model.kwargs,
        code_dirs=code_dirs(options, config),
        trust_code=options.trust_code,
        trust_pickle=options.trust_pickle,
    )
    return LoadedModel(in_eval_mode(module), None, "directory", sha256, directory=directory)


# What needs no factory, and no place of weights.
_COMPLETE: dict[str, str] = {
    "onnx": "an ONNX model",
    "pt2": "a torch.export program",
    "pt2_legacy": "a torch.export program",
}


def load_model(
    path: Path,
    *,
    factory: str | None,
    kwargs: Mapping[str, object],
    code_dirs: Sequence[Path],
    state_key: str | None,
    trust_pickle: bool,
    needs_example: bool = True,
) -> LoadedModel:
    """Load a model from a checkpoint file; which form the file has is told by its content.

    Args:
        factory: `MODULE:CALLABLE` that builds the module for files that hold weights only.
        kwargs: Keyword arguments of the factory.
        code_dirs: Directories of the user's code, put first on sys.path and left there.
        state_key: Key of the weights in a training checkpoint, dotted for nested ones; None to find
            the only place.
        trust_pickle: Whether code that the file brings along may be executed.
        needs_example: Whether the example inputs of a program have to be read.

    Raises:
        CheckpointError: The file cannot be read, is not trusted, or does not fit the module.
        ConfigError: The factory or a code directory is wrong.
    """
    form = detect_form(path)
    if form in _COMPLETE:
        _refuse_options(path, _COMPLETE[form], factory=factory, state_key=state_key)
    if form == "onnx":
        return load_onnx(path)
    with user_code(code_dirs):
        if form in ("pt2", "pt2_legacy"):
            if form == "pt2_legacy" and not trust_pickle:
                raise CheckpointError(
                    f"{path}: is a torch.export program of an old format, which is read by"
                    " unpickling.",
                    hint="Save it again with a newer torch, or pass --trust-pickle if you trust"
                    " it.",
                )
            program = load_program(path, trust_pickle=trust_pickle, needs_example=needs_example)
            return LoadedModel(None, program, "pt2", sha256_of(path))
        loaded, digest = read_weights(path, form, trust_pickle=trust_pickle)
        found = weights.select_weights(loaded, state_key=state_key, source=str(path))
        name: CheckpointForm = "state_dict" if found is loaded else "checkpoint"
        if isinstance(found, torch.nn.Module):
            _refuse_options(path, "a whole module", factory=factory)
            name, module = "module", _unwrapped(found)
        elif factory is None:
            raise CheckpointError(
                f"{path}: holds weights only ({weights.describe(found)});"
                " their module is not known.",
                hint="Name what builds it with --factory MODULE:CALLABLE (and --code-dir DIR).",
            )
        else:
            module = weights.build_module(factory, kwargs, code_dirs=code_dirs)
            weights.load_weights(module, cast(weights.StateDict, found), source=str(path))
    name = "safetensors" if form.startswith("safetensors") else name
    return LoadedModel(in_eval_mode(module), None, name, digest)


def load_onnx(path: Path) -> LoadedModel:
    """Load an ONNX file.

    Raises:
        CheckpointError: It cannot be read.
        ExportError: It has loops, or draws random numbers.
        BackendError: ONNX Runtime does not run it: an operator's library is missing, say.
    """
    source = read_onnx(path)
    runner = onnx_file(path).open(FUNCTION_BODIES)
    module = OnnxModule(source.graph, source.opsets)
    return LoadedModel(module, None, "onnx", source.sha256, original=OnnxOriginal(source, runner))


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


def _unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    if isinstance(module, torch.nn.DataParallel):
        return _unwrapped(cast(torch.nn.Module, module.module))
    compiled = getattr(module, "_orig_mod", None)  # torch.compile's wrapper
    return _unwrapped(compiled) if isinstance(compiled, torch.nn.Module) else module


def _refuse_options(
    path: Path, what: str, *, factory: str | None = None, state_key: str | None = None
) -> None:
    given = {"--factory": factory, "--state-key": state_key}
    for option, value in given.items():
        if value is not None:
            raise ConfigError(
                f"{path}: is {what}, for which {option} '{value}' has no meaning.",
                hint=f"Leave {option} out (or set it to null in the config).",
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
    return model, tuple(
        replace(item, value=item.value.to(dtype)) if item.value.dtype in floats else item
        for item in inputs
    )


def code_dirs(options: ModelOptions, config: ExportConfig) -> tuple[Path, ...]:
    """Directories of the user's code, those of the options first."""
    return (*options.code_dirs, *config.model.code_dirs)
