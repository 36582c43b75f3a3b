"""Build a module without memory for its parameters: a checkpoint's are put into it as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


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
