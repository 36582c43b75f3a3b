"""Load a model directory: its class from code, its weights mapped from disk."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from moh_deploy.config.export_config import ModelSection
from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.load import checkpoint_file
from moh_deploy.frontend.load.fileform import read_weights
from moh_deploy.frontend.load.model import LoadedModel
from moh_deploy.frontend.load.model_directory import (
    ModelDirectory,
    model_class,
    read_model_directory,
)
from moh_deploy.frontend.quiet import no_advice
from moh_deploy.system.user_code import describe_error

_POSITIONS = ".rotary_emb.inv_freq"


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


def load_directory(
    root: Path, config: ModelSection, *, trust_code: bool, trust_pickle: bool
) -> LoadedModel:
    """Load the model of a directory. Its weights stay the files' pages: they are held once.

    Args:
        config: What builds the module, in place of the class that the directory names, and where
            the user's code is.
        trust_code: Whether code that the directory brings along may be run.
        trust_pickle: Whether code in pickled weights may be run.

    Raises:
        CheckpointError: Something is missing, is not trusted, or does not fit.
        ConfigError: Code cannot be imported, or a key of weights is given.
    """
    if config.state_key is not None:
        raise ConfigError(
            f"{root}: is a model directory, for which --state-key '{config.state_key}' has no"
            " meaning.",
            hint="Leave it out, or name one of its files.",
        )
    directory = read_model_directory(root)
    with parameters_without_memory(), no_advice():
        if config.factory is not None:
            module = checkpoint_file.build_module(
                config.factory, config.kwargs, code_dirs=config.code_dirs
            )
        else:
            found, settings = model_class(directory, config.code_dirs, trust_code=trust_code)
            try:
                module = found(settings)
                read = getattr(settings, "to_dict", partial(getattr, settings, "__dict__", {}))
                directory = replace(directory, settings=read())
            except Exception as error:  # the model's own code
                raise CheckpointError(
                    f"{directory.config_path}: the class {found.__name__} cannot be built with this"
                    f" config: {describe_error(error)}."
                ) from error
            if directory.config.get("tie_word_embeddings"):
                _tie_embeddings(module)
    path = directory.weights
    content, digest = read_weights(path, trust_pickle=trust_pickle)
    if not isinstance(content, Mapping) or not all(map(torch.is_tensor, content.values())):
        raise CheckpointError(f"{path}: holds no weights; expected names mapped to tensors.")
    state: dict[str, torch.Tensor] = dict(content)
    if _strange(state, module):
        state = _with_names_of_class(module, directory) or state
    _put_in(module, state, directory)
    return LoadedModel(module, None, "directory", digest, directory=directory)


def _tie_embeddings(module: nn.Module) -> None:
    """Let the embedding's weights be those of the logits' projection, as Hugging Face does."""
    get_input = getattr(module, "get_input_embeddings", None)
    get_output = getattr(module, "get_output_embeddings", None)
    if get_input is None or get_output is None:
        return
    embedding, projection = get_input(), get_output()
    if isinstance(embedding, nn.Module) and isinstance(projection, nn.Module):
        projection.weight = embedding.weight


def _strange(state: Mapping[str, torch.Tensor], module: nn.Module) -> list[str]:
    """Return the names of weights that a module does not have, except tables of positions, which
    its code computes."""
    known = module.state_dict().keys()
    return [name for name in state if name not in known and not name.endswith(_POSITIONS)]


def _with_names_of_class(
    module: nn.Module, directory: ModelDirectory
) -> dict[str, torch.Tensor] | None:
    """Return the weights under the names of today's class; None where it does not read them.

    Transformers renames weights when it reads a file: files of ViT have those of its first version.
    """
    read = getattr(module, "from_pretrained", None)
    if read is None:
        return None
    options = {"local_files_only": True, "dtype": "auto", "output_loading_info": True}
    try:
        with no_advice():
            loaded, info = read(directory.root, config=module.config, **options)
    except Exception:  # of any kind: what does not fit is said by the names in the file
        return None
    # What a file lacks, transformers draws at random.
    is_whole = not any(info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    return dict(loaded.state_dict()) if is_whole else None


def _put_in(module: nn.Module, state: dict[str, torch.Tensor], directory: ModelDirectory) -> None:
    """Let the tensors of a state dict be those of a module, without a copy."""
    place = f"{directory.weights}: contradicts {directory.config_path.name}"
    before = dict(module.named_parameters(remove_duplicate=False))
    state = dict(checkpoint_file.without_wrapper_prefixes(state, module.state_dict().keys()))
    _, _, shapes = checkpoint_file.misfit_of(module.state_dict(), state)
    if shapes:
        raise CheckpointError(f"{place}: {shapes[0]}.", hint="Copy both from the same place again.")
    module.load_state_dict(state, strict=False, assign=True)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    # Names of one parameter before, as of tied embeddings, are names of one again.
    loaded = {
        id(before[name]): new for name, new in reversed(parameters.items()) if not new.is_meta
    }
    for name, parameter in parameters.items():
        if parameter.is_meta and id(before[name]) in loaded:
            owner, _, last = name.rpartition(".")
            setattr(module.get_submodule(owner), last, loaded[id(before[name])])
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    missing = [name for name, tensor in named if tensor.is_meta]
    unexpected = _strange(state, module)
    lists = (("the checkpoint lacks", missing), ("the model has no place for", unexpected))
    found = [
        f"{words} {len(names)} weight{'s' * (len(names) > 1)}, {names[0]} among them"
        for words, names in lists
        if names
    ]
    if found:
        raise CheckpointError(
            f"{place}: {'; '.join(found)}.",
            hint="Copy both from the same place again, the modelling code too.",
        )
