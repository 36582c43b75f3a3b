"""A factory of the user's: how it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from moh_deploy.errors import ConfigError
from moh_deploy.system.user_code import describe_error, find_callable, user_code


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
