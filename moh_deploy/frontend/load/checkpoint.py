"""Loading: from a checkpoint file, in whatever form, to a model in eval mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.load.fileform import (
    FileForm,
    detect_form,
    read_pickled,
    read_safetensors,
    read_shards,
    sha256_of_shards,
)
from moh_deploy.frontend.load.model import CheckpointForm, LoadedModel
from moh_deploy.frontend.load.onnx_graph.file import OnnxOriginal, read_onnx
from moh_deploy.frontend.load.onnx_graph.module import OnnxModule
from moh_deploy.frontend.load.pt2 import load_program, require_inference_mode
from moh_deploy.frontend.load.weights import (
    StateDict,
    build_module,
    describe,
    is_model,
    load_weights,
    select_weights,
)
from moh_deploy.runtime.base import FUNCTION_BODIES
from moh_deploy.runtime.open_runner import onnx_file
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.suggest import shortened
from moh_deploy.system.user_code import user_code

# Refuse models whose weights are integers already.


def refuse_quantised(module: torch.nn.Module) -> None:
    """Refuse a module that torch.ao or torchao has quantised: its products are code of their own.

    Raises:
        CheckpointError: Naming the first such part.
    """
    for name, part in module.named_modules():
        kinds = [type(part), *map(type, part.parameters(recurse=False))]
        quantised = next(filter(_is_quantised, kinds), None)
        if quantised is not None:
            raise CheckpointError(
                f"the model is quantised: '{name or 'the model'}' is or holds a"
                f" {quantised.__module__}.{quantised.__name__}.",
                hint="Export the checkpoint in floating point as it was before, then lower the"
                " package: moh-deploy precision.",
            )


def _is_quantised(kind: type) -> bool:
    parts = kind.__module__.split(".")
    return parts[0] == "torchao" or (parts[0] == "torch" and "quantized" in parts)


# Load an ONNX file: a module to trace, and ONNX Runtime to say what the model computes.


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
    if form == "onnx":
        _refuse_options(path, "an ONNX model", factory=factory, state_key=state_key)
        return load_onnx(path)
    digest = sha256_of_shards(path) if form == "safetensors_index" else sha256_of(path)
    with user_code(code_dirs):
        if form in ("pt2", "pt2_legacy"):
            _refuse_options(path, "a torch.export program", factory=factory, state_key=state_key)
            program = _load_program(
                path, form, trust_pickle=trust_pickle, needs_example=needs_example
            )
            return LoadedModel(None, program, "pt2", digest)
        loaded = _read(path, form, trust_pickle=trust_pickle)
        found = select_weights(loaded, state_key=state_key, source=str(path))
        if isinstance(found, torch.nn.Module):
            _refuse_options(path, "a whole module", factory=factory)
            module = _unwrapped(found)
        else:
            module = _build(path, found, factory=factory, kwargs=kwargs, code_dirs=code_dirs)
    return LoadedModel(in_eval_mode(module), None, _form_name(form, loaded, found), digest)


def in_eval_mode(module: torch.nn.Module) -> torch.nn.Module:
    """Put a module on the CPU, it and everything in it in eval mode, and turn gradients off.

    Raises:
        CheckpointError: A lazy module has not run yet, so that it has no weights; weights are on
            the meta device, or quantised.
    """
    refuse_quantised(module)
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


def _read(path: Path, form: FileForm, *, trust_pickle: bool) -> object:
    if form == "safetensors":
        return read_safetensors(path)
    if form == "safetensors_index":
        return read_shards(path)
    return read_pickled(path, is_zip=form == "torch_zip", trust_pickle=trust_pickle)


def _load_program(
    path: Path, form: FileForm, *, trust_pickle: bool, needs_example: bool
) -> torch.export.ExportedProgram:
    if form == "pt2_legacy" and not trust_pickle:
        raise CheckpointError(
            f"{path}: is a torch.export program of an old format, which is read by unpickling.",
            hint="Save it again with a newer torch, or pass --trust-pickle if you trust it.",
        )
    program = load_program(path, trust_pickle=trust_pickle, needs_example=needs_example)
    require_inference_mode(program, source=str(path))
    return program


def _build(
    path: Path,
    state: object,
    *,
    factory: str | None,
    kwargs: Mapping[str, object],
    code_dirs: Sequence[Path],
) -> torch.nn.Module:
    if factory is None:
        raise CheckpointError(
            f"{path}: holds weights only ({describe(state)}); their module is not known.",
            hint="Name what builds it with --factory MODULE:CALLABLE (and --code-dir DIR).",
        )
    module = build_module(factory, kwargs, code_dirs=code_dirs)
    load_weights(module, cast(StateDict, state), source=str(path))
    return module


def _unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    if isinstance(module, torch.nn.DataParallel):
        return _unwrapped(cast(torch.nn.Module, module.module))
    compiled = getattr(module, "_orig_mod", None)  # torch.compile's wrapper
    return _unwrapped(compiled) if isinstance(compiled, torch.nn.Module) else module


def _form_name(form: FileForm, loaded: object, found: object) -> CheckpointForm:
    if form in ("safetensors", "safetensors_index"):
        return "safetensors"
    if isinstance(found, torch.nn.Module):
        return "module"
    return "state_dict" if found is loaded and is_model(loaded) else "checkpoint"


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
