"""Load a checkpoint file: a whole model, or weights that fill a module which a factory builds."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from moh_deploy.config.export_config import ModelSection
from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.frontend.load.fileform import detect_form, read_weights
from moh_deploy.frontend.load.model import CheckpointForm, LoadedModel
from moh_deploy.frontend.load.onnx_graph.file import OnnxOriginal, read_onnx
from moh_deploy.frontend.load.onnx_graph.module import OnnxModule
from moh_deploy.frontend.load.pt2 import load_program
from moh_deploy.runtime.base import FUNCTION_BODIES
from moh_deploy.runtime.open_runner import onnx_file
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.suggest import MAX_LISTED, did_you_mean, shortened
from moh_deploy.system.user_code import describe_error, find_callable, user_code

StateDict = Mapping[str, torch.Tensor]

_MAX_DEPTH = 3
# Names that wrappers of a part of a model put into the names of its weights: torch.compile, FSDP,
# activation checkpointing.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# What AveragedModel counts beside the weights.
_AVERAGED = "n_averaged"


# What needs no factory, and no place of weights.
_COMPLETE: dict[str, str] = {
    "onnx": "an ONNX model",
    "pt2": "a torch.export program",
    "pt2_legacy": "a torch.export program",
}


def load_file(
    path: Path, config: ModelSection, *, trust_pickle: bool, needs_example: bool
) -> LoadedModel:
    """Load a model from a checkpoint file; which form the file has is told by its content.

    Args:
        config: How the module is built for files that hold weights only, and where those are. The
            user's code is found: see `user_code`.
        trust_pickle: Whether code that the file brings along may be executed.
        needs_example: Whether the example inputs of a program have to be read.

    Raises:
        CheckpointError: The file cannot be read, is not trusted, or does not fit the module.
        ConfigError: The factory or a code directory is wrong.
    """
    form = detect_form(path)
    if form in _COMPLETE:
        _refuse_options(path, _COMPLETE[form], factory=config.factory, state_key=config.state_key)
    if form == "onnx":
        return load_onnx(path)
    if form in ("pt2", "pt2_legacy"):
        if form == "pt2_legacy" and not trust_pickle:
            raise CheckpointError(
                f"{path}: is a torch.export program of an old format, which is read by unpickling.",
                hint="Save it again with a newer torch, or pass --trust-pickle if you trust it.",
            )
        program = load_program(path, trust_pickle=trust_pickle, needs_example=needs_example)
        return LoadedModel(None, program, "pt2", sha256_of(path))
    loaded, digest = read_weights(path, trust_pickle=trust_pickle)
    found = select_weights(loaded, state_key=config.state_key, source=str(path))
    name: CheckpointForm = "state_dict" if found is loaded else "checkpoint"
    if isinstance(found, torch.nn.Module):
        _refuse_options(path, "a whole module", factory=config.factory)
        name, module = "module", _unwrapped(found)
    elif config.factory is None:
        raise CheckpointError(
            f"{path}: holds weights only ({describe(found)}); their module is not known.",
            hint="Name what builds it with --factory MODULE:CALLABLE (and --code-dir DIR).",
        )
    else:
        module = build_module(config.factory, config.kwargs, code_dirs=config.code_dirs)
        load_weights(module, cast(StateDict, found), source=str(path))
    name = "safetensors" if form.startswith("safetensors") else name
    return LoadedModel(module, None, name, digest)


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


def build_module(
    factory: str, kwargs: Mapping[str, object], *, code_dirs: Sequence[Path]
) -> torch.nn.Module:
    """Import `MODULE:CALLABLE` and call it.

    Args:
        factory: Such as `models:tiny_vit` or `package.models:Net.from_size`.
        kwargs: Keyword arguments of the call.
        code_dirs: Searched before everything else.

    Raises:
        ConfigError: The factory is malformed, cannot be imported, fails, or returns no module.
    """
    with user_code(code_dirs):
        build = find_callable(factory, what="factory", code_dirs=code_dirs)
        try:
            module = build(**kwargs)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"factory '{factory}' needs the package '{error.name}', which is not installed:"
                f" {describe_error(error)}.",
                hint="Install what the model's code imports into the environment of moh-deploy, or"
                " say where it lies with --code-dir.",
            ) from error
        except (Exception, SystemExit) as error:
            given = ", ".join(f"{k}={value!r}" for k, value in kwargs.items()) or "no arguments"
            hint = None
            try:
                name, signature = factory.partition(":")[2], inspect.signature(build)
                hint = f"Its signature is {name}{signature}; set model.kwargs to match."
            except (TypeError, ValueError):  # builtins may lack it
                pass
            raise ConfigError(
                f"factory '{factory}' called with {given} raised {describe_error(error)}.",
                hint=hint,
            ) from error
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(
            f"factory '{factory}' returned a {type(module).__name__}; expected a torch.nn.Module."
        )
    return module


def select_weights(loaded: object, *, state_key: str | None, source: str) -> object:
    """Return the part of a checkpoint that holds the model: a state dict or a pickled module.

    Args:
        loaded: What the file holds.
        state_key: Where the weights are, dotted for nested mappings; None to find the only place.
        source: Name of the file, for messages.

    Raises:
        CheckpointError: The key does not exist, or without a key there is not exactly one place.
    """
    if state_key is not None:
        return _follow(loaded, state_key, source)
    if _is_model(loaded):
        return loaded
    found = dict(_candidates(loaded, ""))
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise CheckpointError(
            f"{source}: holds {len(found)} sets of weights: {shortened(found)}.",
            hint=f"Choose one with --state-key, such as --state-key {next(iter(found))}.",
        )
    raise CheckpointError(
        f"{source}: holds no weights; expected names mapped to tensors, got {describe(loaded)}."
    )


def _is_model(value: object) -> bool:
    """Tell a module or a state dict, which may hold extra states."""
    if isinstance(value, torch.nn.Module):
        return True
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    rest = [key for key, item in value.items() if not isinstance(item, torch.Tensor)]
    return len(rest) < len(value) and all(key.endswith("_extra_state") for key in rest)


def describe(value: object) -> str:
    """Return a short description of what a checkpoint holds."""
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    return f"keys {shortened(str(key) for key in value)}" if value else "an empty mapping"


def _follow(loaded: object, state_key: str, source: str) -> object:
    value, rest = loaded, state_key
    while rest:
        if not isinstance(value, Mapping):
            raise CheckpointError(
                f"{source}: --state-key '{state_key}': cannot look up '{rest}' in"
                f" {describe(value)}."
            )
        # Names of entries may themselves hold dots: the longest that fits wins.
        fits = [k for k in value if isinstance(k, str) and f"{rest}.".startswith(f"{k}.")]
        if not fits:
            part = _named_part(value, rest)
            if not part:
                hint = "The file is a state dict itself: leave --state-key out."
                if not _is_model(value):
                    keys = [str(key) for key in value]
                    hint = f"{did_you_mean(rest, keys)} It has: {shortened(keys)}.".strip()
                raise CheckpointError(
                    f"{source}: --state-key '{state_key}': there is no key '{rest}'.", hint=hint
                )
            return part
        key = max(fits, key=len)
        value, rest = value[key], rest[len(key) + 1 :]
    if not _is_model(value):
        raise CheckpointError(
            f"{source}: --state-key '{state_key}' holds no weights; expected names mapped to"
            f" tensors, got {describe(value)}."
        )
    return value


def _named_part(value: Mapping[object, object], name: str) -> StateDict:
    """The weights of one part of a state dict, or of the only one that a checkpoint holds: `model`
    of `{"state_dict": {"model.stem.weight": ...}}`."""
    found = [value] if _is_model(value) else [state for _, state in _candidates(value, "")]
    if len(found) != 1 or not isinstance(found[0], Mapping):
        return {}
    only, prefix = cast(StateDict, found[0]), f"{name}."
    return {key.removeprefix(prefix): v for key, v in only.items() if key.startswith(prefix)}


def _candidates(value: object, path: str, depth: int = 0) -> Iterator[tuple[str, object]]:
    if depth > 0 and _is_model(value):
        yield path, value
    # `param_groups` marks the state of an optimizer: its tensors are moments, not weights.
    elif isinstance(value, Mapping) and depth < _MAX_DEPTH and "param_groups" not in value:
        for key, item in value.items():
            if isinstance(key, str):
                yield from _candidates(item, f"{path}.{key}" if path else key, depth + 1)


def load_weights(module: torch.nn.Module, state: StateDict, *, source: str) -> None:
    """Copy a state dict into a module; a module of another precision takes that of the weights.

    Prefixes of wrappers (`module.` of DistributedDataParallel, `_orig_mod.` of torch.compile) are
    removed where the module does not have them. A parameter that shares memory with a loaded one is
    loaded with it. If all floating weights have one dtype, the module takes it; if they are mixed,
    they are converted to the module's.

    Raises:
        CheckpointError: Keys are missing, unexpected or of another shape.
    """
    own = module.state_dict()
    state = without_wrapper_prefixes(state, own.keys())
    own_dtypes, stored = _floating_dtypes(own), _floating_dtypes(state)
    if len(stored) == 1 and stored != own_dtypes:
        module.to(dtype=next(iter(stored)))
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        missing, unexpected, shapes = misfit_of(module.state_dict(), state)
        if not shapes:
            raise CheckpointError(f"{source}: does not fit the model: {error}") from error
        raise _does_not_fit(source, missing, unexpected, shapes) from error
    missing = _without_tied(result.missing_keys, module.state_dict(), state)
    if missing or result.unexpected_keys:
        raise _does_not_fit(source, missing, list(result.unexpected_keys), [])


def without_wrapper_prefixes(state: StateDict, expected: Iterable[str]) -> StateDict:
    """Return the state dict with the names that the module has."""
    names = set(expected)

    def plain(key: str) -> str:
        # A model whose parts alone were compiled has the prefix in the middle of some names.
        for wrapper in _WRAPPERS:
            key = key if key in names else key.replace(wrapper, "")
        return key

    state = {plain(key): value for key, value in state.items()}
    while state and not names & state.keys():
        # What all keys with parts name first: `module.`, `model.`.
        firsts = {key.partition(".")[0] for key in state if "." in key and key != _AVERAGED}
        if len(firsts) != 1:
            break
        prefix = f"{firsts.pop()}."
        state = {k.removeprefix(prefix): v for k, v in state.items() if k != _AVERAGED}
    return state


def _floating_dtypes(state: StateDict) -> set[torch.dtype]:
    tensors = (t for t in state.values() if isinstance(t, torch.Tensor))
    return {tensor.dtype for tensor in tensors if tensor.is_floating_point()}


def misfit_of(own: StateDict, state: StateDict) -> tuple[list[str], list[str], list[str]]:
    """Return the names that a state dict lacks of a module's, those beyond, and other shapes."""
    shapes = [
        f"{key}: the model has {list(own[key].shape)}, the checkpoint {list(value.shape)}"
        for key, value in state.items()
        if isinstance(own.get(key), torch.Tensor) and own[key].shape != value.shape
    ]
    missing = _without_tied((key for key in own if key not in state), own, state)
    return missing, [key for key in state if key not in own], shapes


def _without_tied(missing: Iterable[str], own: StateDict, state: StateDict) -> list[str]:
    """Leave out what lies in the memory of a tensor that was loaded."""
    places = {key: _memory(value) for key, value in own.items() if isinstance(value, torch.Tensor)}
    loaded = [places[key] for key in state.keys() & places.keys()]

    def is_loaded(key: str) -> bool:
        start, stop = places.get(key, (0, 0))
        return start != 0 and any(first <= start and stop <= last for first, last in loaded)

    return [key for key in missing if not is_loaded(key)]


def _memory(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first address and the address after the last one that a tensor's values lie at."""
    if tensor.numel() == 0:
        return (0, 0)
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return (tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size())


def _does_not_fit(
    source: str, missing: list[str], unexpected: list[str], shapes: list[str]
) -> CheckpointError:
    lines = []
    for title, names in (
        ("missing keys", missing),
        ("unexpected keys", unexpected),
        ("keys of another shape", shapes),
    ):
        if names:
            more = [f"... and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
            listed = "\n    ".join([*names[:MAX_LISTED], *more])
            lines.append(f"{len(names)} {title}:\n    {listed}")
    hint = "Check the factory and its kwargs, and which weights --state-key names."
    # A part of the checkpoint may have all missing keys.
    first = f".{next(iter(missing), None)}"
    parts = sorted({key.removesuffix(first) for key in unexpected if key.endswith(first)})
    fits = [part for part in parts if {f"{part}.{key}" for key in missing} <= set(unexpected)]
    if fits:
        hint = f"Its part {' or '.join(fits)} has the missing keys: --state-key {fits[0]} takes it."
    return CheckpointError(f"{source}: does not fit the model: " + "\n  ".join(lines), hint=hint)
