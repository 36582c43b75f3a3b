"""Weights: found inside a checkpoint, freed of wrapper prefixes, copied into a module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from moh_deploy.errors import CheckpointError, ConfigError
from moh_deploy.system.suggest import MAX_LISTED, did_you_mean, shortened
from moh_deploy.system.user_code import describe_error, find_callable, user_code

# A factory of the user's: how it is called.


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
        return _call(build, kwargs, factory)


def _call(
    build: Callable[..., object], kwargs: Mapping[str, object], factory: str
) -> torch.nn.Module:
    try:
        module = build(**kwargs)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"factory '{factory}' needs the package '{error.name}', which is not installed:"
            f" {describe_error(error)}.",
            hint="Install what the model's code imports into the environment of moh-deploy, or say"
            " where it lies with --code-dir.",
        ) from error
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in kwargs.items()) or "no arguments"
        raise ConfigError(
            f"factory '{factory}' called with {given} raised {describe_error(error)}.",
            hint=_signature_hint(build, factory),
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(
            f"factory '{factory}' returned a {type(module).__name__}; expected a torch.nn.Module."
        )
    return module


def _signature_hint(build: Callable[..., object], factory: str) -> str | None:
    try:
        signature = inspect.signature(build)
    except (TypeError, ValueError):  # builtins may have none
        return None
    name = factory.partition(":")[2]
    return f"Its signature is {name}{signature}; set model.kwargs to match."


StateDict = Mapping[str, torch.Tensor]

_MAX_DEPTH = 3
# Names that wrappers of a part of a model put into the names of its weights: torch.compile, FSDP,
# activation checkpointing.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# What AveragedModel counts beside the weights.
_AVERAGED = "n_averaged"


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
    if is_model(loaded):
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


def is_model(value: object) -> bool:
    """Return whether a value is a module or a state dict (which may hold extra states)."""
    if isinstance(value, torch.nn.Module):
        return True
    if not isinstance(value, Mapping) or not value:
        return False
    names = all(isinstance(key, str) for key in value)
    tensors = [isinstance(item, torch.Tensor) for item in value.values()]
    rest = [key for key, is_tensor in zip(value, tensors, strict=True) if not is_tensor]
    return names and any(tensors) and all(key.endswith("_extra_state") for key in rest)


def describe(value: object) -> str:
    """Return a short description of what a checkpoint holds."""
    if not isinstance(value, Mapping):
        return f"a {type(value).__name__}"
    return f"keys {shortened(str(key) for key in value)}" if value else "an empty mapping"


def load_weights(module: torch.nn.Module, state: StateDict, *, source: str) -> None:
    """Copy a state dict into a module; a module of another precision takes that of the weights.

    Prefixes of wrappers (`module.` of DistributedDataParallel, `_orig_mod.` of torch.compile) are
    removed where the module does not have them. A parameter that shares memory with a loaded one is
    loaded with it. If all floating weights have one dtype, the module takes it; if they are mixed,
    they are converted to the module's.

    Raises:
        CheckpointError: Keys are missing, unexpected or of another shape.
    """
    expected = module.state_dict()
    state = without_wrapper_prefixes(state, expected.keys())
    _adopt_precision(module, state)
    try:
        result = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        mismatch = misfit_of(module.state_dict(), state)
        if not mismatch.shapes:
            raise CheckpointError(f"{source}: does not fit the model: {error}") from error
        raise does_not_fit(source, mismatch) from error
    missing = _without_tied(result.missing_keys, module.state_dict(), state)
    if missing or result.unexpected_keys:
        raise does_not_fit(source, Mismatch(missing, list(result.unexpected_keys), []))


def without_wrapper_prefixes(state: StateDict, expected: Iterable[str]) -> StateDict:
    """Return the state dict with the names that the module has."""
    names = set(expected)
    state = {_plain_name(key, names): value for key, value in state.items()}
    while state and not names & state.keys():
        prefix = _common_prefix(key for key in state if key != _AVERAGED)
        if prefix is None:
            break
        state = {k.removeprefix(prefix): v for k, v in state.items() if k != _AVERAGED}
    return state


def _plain_name(key: str, names: set[str]) -> str:
    # A model whose parts alone were compiled has the prefix in the middle of some names.
    for wrapper in _WRAPPERS:
        key = key if key in names else key.replace(wrapper, "")
    return key


def _common_prefix(keys: Iterable[str]) -> str | None:
    """The part of a model that all keys with parts name first: `module.`, `model.`."""
    firsts = {key.partition(".")[0] for key in keys if "." in key}
    return f"{firsts.pop()}." if len(firsts) == 1 else None


def _below(state: StateDict, prefix: str) -> StateDict:
    """The part of a state dict whose names begin with a prefix, without it."""
    return {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class Mismatch:
    """The differences between a state dict and what a module expects.

    Attributes:
        shapes: For each key of another shape: its name and both shapes.
    """

    missing: list[str]
    unexpected: list[str]
    shapes: list[str]


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
                raise _no_such_key(value, rest, state_key, source)
            return part
        key = max(fits, key=len)
        value, rest = value[key], rest[len(key) + 1 :]
    if not is_model(value):
        raise CheckpointError(
            f"{source}: --state-key '{state_key}' holds no weights; expected names mapped to"
            f" tensors, got {describe(value)}."
        )
    return value


def _named_part(value: Mapping[object, object], name: str) -> StateDict:
    """The weights of one part of a state dict, or of the only one that a checkpoint holds: `model`
    of `{"state_dict": {"model.stem.weight": ...}}`."""
    found = [value] if is_model(value) else [state for _, state in _candidates(value, "")]
    only = cast(StateDict, found[0]) if len(found) == 1 and isinstance(found[0], Mapping) else {}
    return _below(only, f"{name}.")


def _no_such_key(
    value: Mapping[object, object], rest: str, state_key: str, source: str
) -> CheckpointError:
    if is_model(value):
        hint = "The file is a state dict itself: leave --state-key out."
    else:
        keys = [str(key) for key in value]
        hint = f"{did_you_mean(rest, keys)} It has: {shortened(keys)}.".strip()
    return CheckpointError(
        f"{source}: --state-key '{state_key}': there is no key '{rest}'.", hint=hint
    )


def _candidates(value: object, path: str, depth: int = 0) -> Iterator[tuple[str, object]]:
    if depth > 0 and is_model(value):
        yield path, value
    # `param_groups` marks the state of an optimizer: its tensors are moments, not weights.
    elif isinstance(value, Mapping) and depth < _MAX_DEPTH and "param_groups" not in value:
        for key, item in value.items():
            if isinstance(key, str):
                yield from _candidates(item, f"{path}.{key}" if path else key, depth + 1)


def _adopt_precision(module: torch.nn.Module, state: StateDict) -> None:
    own = _floating_dtypes(module.state_dict().values())
    stored = _floating_dtypes(state.values())
    if len(stored) == 1 and stored != own:
        module.to(dtype=next(iter(stored)))


def _floating_dtypes(tensors: Iterable[object]) -> set[torch.dtype]:
    return {t.dtype for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()}


def _without_tied(missing: Iterable[str], own: StateDict, state: StateDict) -> list[str]:
    loaded = [_memory(own[key]) for key in state.keys() & own.keys() if _is_tensor(own[key])]

    def is_loaded(key: str) -> bool:
        start, stop = _memory(own[key])
        return start != 0 and any(first <= start and stop <= last for first, last in loaded)

    return [key for key in missing if not (_is_tensor(own.get(key)) and is_loaded(key))]


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _memory(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first address and the address after the last one that a tensor's values lie at."""
    if tensor.numel() == 0:
        return (0, 0)
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return (tensor.data_ptr(), tensor.data_ptr() + reach * tensor.element_size())


def misfit_of(own: StateDict, state: StateDict) -> Mismatch:
    """Say how a state dict differs from that of a module."""
    shapes = [
        f"{key}: the model has {list(own[key].shape)}, the checkpoint {list(value.shape)}"
        for key, value in state.items()
        if key in own and _is_tensor(own[key]) and own[key].shape != value.shape
    ]
    missing = _without_tied((key for key in own if key not in state), own, state)
    return Mismatch(missing, [key for key in state if key not in own], shapes)


def does_not_fit(source: str, mismatch: Mismatch) -> CheckpointError:
    """The error for weights that are not those of a module."""
    lines = [
        f"{len(names)} {title}:\n    " + "\n    ".join(_listed(names))
        for title, names in (
            ("missing keys", mismatch.missing),
            ("unexpected keys", mismatch.unexpected),
            ("keys of another shape", mismatch.shapes),
        )
        if names
    ]
    return CheckpointError(
        f"{source}: does not fit the model: " + "\n  ".join(lines), hint=_hint(mismatch)
    )


def _hint(mismatch: Mismatch) -> str:
    """Name the part of the checkpoint that has all missing keys, if one has."""
    unexpected = set(mismatch.unexpected)
    first = next(iter(mismatch.missing), None)
    parts = [key.removesuffix(f".{first}") for key in unexpected if key.endswith(f".{first}")]
    fits = [p for p in sorted(parts) if all(f"{p}.{key}" in unexpected for key in mismatch.missing)]
    if fits:
        return f"Its part {' or '.join(fits)} has the missing keys: --state-key {fits[0]} takes it."
    return "Check the factory and its kwargs, and which weights --state-key names."


def _listed(names: list[str]) -> list[str]:
    more = [f"... and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
    return names[:MAX_LISTED] + more
