"""Load a model directory: its class from code, its weights mapped from disk."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import nn

from moh_deploy.errors import CheckpointError
from moh_deploy.frontend.load.directory.code import model_class
from moh_deploy.frontend.load.directory.files import ModelDirectory, read_model_directory
from moh_deploy.frontend.load.fileform import (
    detect_form,
    list_shards,
    read_pickled,
    read_safetensors,
)
from moh_deploy.frontend.load.weights import (
    StateDict,
    build_module,
    misfit_of,
    without_wrapper_prefixes,
)
from moh_deploy.frontend.quiet import no_advice
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.user_code import describe_error, user_code

# Build a module without memory for its parameters: a checkpoint's are put into it as they are.


@contextlib.contextmanager
def parameters_without_memory() -> Iterator[None]:
    """Let modules that are built meanwhile have parameters on the meta device.

    Buffers are made as ever: tables of positions are in no checkpoint, their code computes them.
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        # One that is there already, such as a tied one, stays the object that it is.
        if param is not None and not param.is_meta:
            # What `torch.empty` has allocated is never touched, so that it takes no memory.
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def tie_again(module: nn.Module, names: dict[str, int]) -> None:
    """Let parameters that were one object before weights were put in be one again.

    Args:
        names: As `shared_names` returned them before.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, group in names.items():
        parameter = parameters[name]
        if not parameter.is_meta:
            continue
        loaded = (parameters[other] for other, name in names.items() if name == group)
        first = next((parameter for parameter in loaded if not parameter.is_meta), None)
        if first is not None:
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, first)


def shared_names(module: nn.Module) -> dict[str, int]:
    """Return the name of every parameter, and a number that names of one parameter share."""
    return {
        name: id(parameter) for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def still_empty(module: nn.Module) -> list[str]:
    """Return the names of parameters and buffers that have no values."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    return [name for name, tensor in named if tensor.is_meta]


def put_in(module: nn.Module, state: dict[str, torch.Tensor]) -> list[str]:
    """Let the tensors of a state dict be those of a module, without a copy.

    Returns:
        Names in the state dict that the module does not have.
    """
    result = module.load_state_dict(state, strict=False, assign=True)
    return list(result.unexpected_keys)


def load_directory(
    root: Path,
    *,
    factory: str | None,
    kwargs: Mapping[str, object],
    code_dirs: Sequence[Path],
    trust_code: bool,
    trust_pickle: bool,
) -> tuple[nn.Module, str, ModelDirectory]:
    """Load the model of a directory. Its weights stay the files' pages: they are held once.

    Args:
        factory: `MODULE:CALLABLE` that builds the module, in place of the class that the directory
            names.
        kwargs: Keyword arguments of the factory.
        code_dirs: Directories of the user's code.
        trust_code: Whether code that the directory brings along may be run.
        trust_pickle: Whether code in pickled weights may be run.

    Returns:
        The module, the digest of its weights, and what else is in the directory.

    Raises:
        CheckpointError: Something is missing, is not trusted, or does not fit.
        ConfigError: Code cannot be imported.
    """
    directory = read_model_directory(root)
    with user_code(code_dirs), parameters_without_memory(), no_advice():
        if factory is not None:
            module = build_module(factory, kwargs, code_dirs=code_dirs)
        else:
            module = _built(directory, code_dirs, trust_code=trust_code)
    files = _weight_files(directory.weights)
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state |= _read(file, trust_pickle=trust_pickle)
    _put_in(module, state, directory)
    digests = [sha256_of(file) for file in files]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode())
    return module, digest if isinstance(digest, str) else digest.hexdigest(), directory


def _built(directory: ModelDirectory, code_dirs: Sequence[Path], *, trust_code: bool) -> nn.Module:
    found, config = model_class(directory, code_dirs, trust_code=trust_code)
    try:
        module = found(config)
    except Exception as error:  # the model's own code
        raise CheckpointError(
            f"{directory.config_path}: the class {found.__name__} cannot be built with this config:"
            f" {describe_error(error)}."
        ) from error
    if directory.config.get("tie_word_embeddings"):
        _tie_embeddings(module)
    return module


def _tie_embeddings(module: nn.Module) -> None:
    """Let the embedding's weights be those of the logits' projection, as Hugging Face does."""
    get_input = getattr(module, "get_input_embeddings", None)
    get_output = getattr(module, "get_output_embeddings", None)
    if get_input is None or get_output is None:
        return
    embedding, projection = get_input(), get_output()
    if isinstance(embedding, nn.Module) and isinstance(projection, nn.Module):
        projection.weight = embedding.weight


def _weight_files(path: Path) -> tuple[Path, ...]:
    return list_shards(path) if path.suffix == ".json" else (path,)


def _read(file: Path, *, trust_pickle: bool) -> dict[str, torch.Tensor]:
    form = detect_form(file)
    if form == "safetensors":
        return read_safetensors(file)
    loaded = read_pickled(file, is_zip=form == "torch_zip", trust_pickle=trust_pickle)
    if not isinstance(loaded, Mapping) or not all(map(torch.is_tensor, loaded.values())):
        raise CheckpointError(f"{file}: holds no weights; expected names mapped to tensors.")
    return dict(cast(StateDict, loaded))


def _put_in(module: nn.Module, state: StateDict, directory: ModelDirectory) -> None:
    source, names = str(directory.weights), shared_names(module)
    state = without_wrapper_prefixes(state, module.state_dict().keys())
    mismatch = misfit_of(module.state_dict(), state)
    if mismatch.shapes:
        raise CheckpointError(
            f"{source}: contradicts {directory.config_path.name}: {mismatch.shapes[0]}.",
            hint="Copy both from the same place again.",
        )
    unexpected = put_in(module, dict(state))
    tie_again(module, names)
    # What a table of positions was before it was computed anew is of no use to anybody.
    unexpected = [name for name in unexpected if not name.endswith(".rotary_emb.inv_freq")]
    missing = still_empty(module)
    if missing or unexpected:
        found = _difference(missing, unexpected)
        raise CheckpointError(
            f"{source}: contradicts {directory.config_path.name}: {found}.",
            hint="Copy both from the same place again, the modelling code too.",
        )


def _difference(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    found = [
        f"{words} {len(names)} weight{'s' * (len(names) > 1)}, {names[0]} among them"
        for words, names in (
            ("the checkpoint lacks", missing),
            ("the model has no place for", unexpected),
        )
        if names
    ]
    return "; ".join(found)
