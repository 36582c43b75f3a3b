"""Call a model as its package says: tensors, one by one, become its nested arguments."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from keyword import iskeyword

import torch

from moh_deploy.frontend.fx.containers import built, without_classes
from moh_deploy.package import Call, CallArgument

_Parameter = inspect.Parameter


def arguments_of(
    call: Call, tensors: Sequence[torch.Tensor]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return the positional arguments and those by keyword; each call makes new containers.

    Args:
        tensors: Values of the package's inputs, in its order.

    Raises:
        ConfigError: A class of the call is not known here.
    """
    remaining = iter(tensors)
    args = tuple(_value(arg, remaining) for arg in call.args)
    return args, {name: _value(kwarg, remaining) for name, kwarg in call.kwargs.items()}


def positional(names: Sequence[str]) -> Call:
    """Return the call in which the inputs are the positional arguments."""
    return Call(tuple(CallArgument(input=name) for name in names), {})


@contextlib.contextmanager
def taking_tensors(module: torch.nn.Module, call: Call) -> Iterator[tuple[str, ...]]:
    """Let a module take the inputs of a call one by one, as torch.export and torch.onnx need them.

    They see neither keywords, constants nor classes then. The module stays the root of its layers,
    and its hooks get the arguments that they were written for. What it returns is made of dicts,
    lists and tuples.

    Yields:
        What the module calls each of them meanwhile.
    """
    names = _identifiers(call.inputs)
    cls = type(module)

    def takes_tensors(self: torch.nn.Module, *tensors: torch.Tensor) -> object:
        args, kwargs = arguments_of(call, tensors)
        return without_classes(cls.__call__(self, *args, **kwargs))

    own = module.__dict__.get("forward")

    def forward(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        return own(*args, **kwargs) if own is not None else cls.forward(self, *args, **kwargs)

    parameters = [_Parameter(name, _Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    members = {
        "__call__": takes_tensors,
        "forward": forward,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    module.__dict__.pop("forward", None)
    module.__class__ = type(cls.__name__, (cls,), members)
    try:
        yield names
    finally:
        module.__class__ = cls
        if own is not None:
            module.__dict__["forward"] = own


def _value(argument: CallArgument, tensors: Iterator[torch.Tensor]) -> object:
    if argument.input is not None:
        return next(tensors)
    if argument.container is None:
        return argument.value
    items = [_value(item, tensors) for item in argument.items]
    return built(argument.container, argument.context, items)


def _identifiers(names: Sequence[str]) -> tuple[str, ...]:
    """Return names that Python takes for parameters: `past.0.key` is `past_0_key`."""
    found: list[str] = []
    for name in names:
        made = re.sub(r"\W", "_", name, flags=re.ASCII)
        usable = made.isidentifier() and not iskeyword(made) and made != "self"
        made = made if usable else f"input_{made}"
        while made in found:
            made += "_"
        found.append(made)
    return tuple(found)
