"""Bring example inputs to the parameters of a model's forward: by name, by position, nested.

Inputs that are called as the parameters are given by name, and their order does not matter; a dot
in a name leads into a tuple, list, dict or dataclass: `past.0.key`. Where no input is called as any
parameter, all are the positional arguments, in order.
"""

import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace

import numpy as np
import torch
from torch.utils import _pytree as pytree
from typing_extensions import TypeIs

from moh_deploy.config.export_config import ConstantValue
from moh_deploy.errors import ConfigError
from moh_deploy.frontend.fx.arrays import to_numpy
from moh_deploy.frontend.fx.containers import Parts, name_of, open_container
from moh_deploy.frontend.inputs.npz_inputs import tensor_of
from moh_deploy.frontend.load.model import ModelInput
from moh_deploy.package import Call, CallArgument
from moh_deploy.system.suggest import did_you_mean, nearly_named

_Parameter = inspect.Parameter
_BY_POSITION = (_Parameter.POSITIONAL_ONLY, _Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True)
class BoundInputs:
    """Inputs, and how a model is called with them."""

    call: Call
    inputs: tuple[ModelInput, ...]  # in the order of the call
    # Names of inputs for which forward has no parameter but its `**kwargs`.
    unknown: frozenset[str] = frozenset()


def bind(
    forward: Callable[..., object], given: Mapping[str, object] | tuple[object, ...]
) -> BoundInputs:
    """Bring values to the parameters of a function.

    Args:
        given: Names to values, or positional arguments. A value is a `ModelInput`, a tensor, an
            array, a constant (None, a truth value, a number, text), or a container of such.

    Raises:
        ConfigError: A name is no parameter, a parameter is missing or given twice, or a value is
            of a class that cannot be opened.
    """
    forward_of_model = _Forward(inspect.signature(forward), _hints(forward))
    if isinstance(given, tuple):
        return forward_of_model.by_name(forward_of_model.named(given))
    if forward_of_model.takes_by_position(list(given)):
        return forward_of_model.by_position(given)
    return forward_of_model.by_name(_nested(given))


def flattened(given: Mapping[str, object] | tuple[object, ...]) -> tuple[ModelInput, ...]:
    """Return the tensors in nested values, without a function to bring them to.

    Raises:
        ConfigError: There is a constant among them, or a value of a class that cannot be opened.
    """
    named = given if isinstance(given, Mapping) else {str(i): v for i, v in enumerate(given)}
    collected = _Collected()
    for name, value in named.items():
        argument = collected.argument(value, name)
        if not argument.inputs:
            raise ConfigError(
                f"'{name}' is the constant {argument.value!r}; an exported program has its"
                " constants in it.",
                hint="Leave it out; to change it, export the program again.",
            )
    return tuple(collected.inputs)


@dataclass
class _Collected:
    """The tensors of a call, in its order."""

    inputs: list[ModelInput] = field(default_factory=list)

    def argument(self, value: object, path: str, hint: object = None) -> CallArgument:
        """Describe a value, and collect the tensors in it.

        Args:
            path: What a tensor is called: `past.0.key`.
            hint: Its annotation, which says what a dict or tuple of paths is meant to be.
        """
        place = f"input '{path}'"
        constant: bool | int | None = None
        if isinstance(value, torch.Tensor):
            value = ModelInput(path, tensor_of(to_numpy(value), place))
        else:
            if isinstance(value, (np.ndarray, np.generic)):
                value = ModelInput(path, tensor_of(np.asarray(value), place))
            if isinstance(value, ModelInput) and not value.value.ndim:
                # A truth value or whole number may stand in a file as an array without axes.
                kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
                is_truth = value.value.dtype == torch.bool
                if kinds == [bool if is_truth else int] and not value.value.is_floating_point():
                    constant = bool(value.value) if is_truth else int(value.value)
        if isinstance(value, ModelInput):
            if constant is not None:
                return CallArgument(value=constant)
            self.inputs.append(value)
            return CallArgument(input=value.name)
        if _is_constant(value):
            return CallArgument(value=_constant(value, path))
        parts = open_container(value)
        if parts is None:
            name = type(value).__name__
            raise ConfigError(
                f"'{path}' is a {name}, whose tensors are not known; expected tensors, None,"
                " numbers, text, tuples, lists, dicts, dataclasses, or a class that is registered"
                " with PyTorch.",
                hint="Register it in the model's code, torch.utils._pytree.register_pytree_node("
                f"{name}, ...); Hugging Face's caches are registered by"
                " transformers.integrations.executorch.register_dynamic_cache_export_support().",
            )
        wanted, hints = _wanted(parts, hint)
        items = tuple(
            self.argument(item, f"{path}.{key}", hints.get(key, hints.get("*")))
            for key, item in zip(parts.keys, parts.items, strict=True)
        )
        try:
            context = json.loads(json.dumps(wanted.context))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"'{path}' is a {wanted.container}, whose registration keeps what JSON has no form"
                f" for ({error}); a package says how the original was called.",
                hint="Register it with a context of text, numbers and lists.",
            ) from error
        return CallArgument(container=wanted.container, context=context, items=items)


@dataclass(frozen=True)
class _Forward:
    """The parameters that values are brought to."""

    signature: inspect.Signature
    hints: Mapping[str, object]  # parameter name to its annotation

    @property
    def _places(self) -> list[str]:
        """Parameters that take an argument by position."""
        parameters = self.signature.parameters.items()
        return [name for name, parameter in parameters if parameter.kind in _BY_POSITION]

    @property
    def _required(self) -> list[str]:
        kinds = (*_BY_POSITION, _Parameter.KEYWORD_ONLY)
        return [
            name
            for name, parameter in self.signature.parameters.items()
            if parameter.default is _Parameter.empty and parameter.kind in kinds
        ]

    def _of_kind(self, kind: inspect._ParameterKind) -> str | None:
        parameters = self.signature.parameters.items()
        return next((name for name, parameter in parameters if parameter.kind is kind), None)

    def takes_by_position(self, names: Sequence[str]) -> bool:
        """Tell whether inputs that are not called as parameters can be meant by position alone.

        They are where none is called as a parameter, or nearly so. Where some are, those must stand
        at their own places, and others only where an argument has to be given anyway, or behind all
        parameters.
        """
        parameters, places, required = self.signature.parameters, self._places, self._required
        known = [name.split(".")[0] in parameters for name in names]
        varargs = self._of_kind(_Parameter.VAR_POSITIONAL)
        if all(known) or not set(required) <= set(places[: len(names)]):
            return False
        called = (name.split(".")[0] for name in names)
        if nearly_named(called, list(dict.fromkeys((*places, *required)))):
            return False
        if varargs is None and len(names) > len(places):
            return False
        if not any(known):
            return bool(places or varargs)
        free = zip(names, [*places, *[None] * len(names)], known, strict=False)
        return all(
            name == place if is_known else place is None or place in required
            for name, place, is_known in free
        )

    def by_position(self, given: Mapping[str, object]) -> BoundInputs:
        """Return the call whose positional arguments are the values, whatever they are called."""
        collected = _Collected()
        hints = [*map(self.hints.get, self._places), *[None] * len(given)]
        args = [
            collected.argument(value, name, hint)
            for (name, value), hint in zip(given.items(), hints, strict=False)
        ]
        return BoundInputs(Call(tuple(args), {}), tuple(collected.inputs))

    def by_name(self, named: Mapping[str, object]) -> BoundInputs:
        """Return the call that gives each value to the parameter of its name."""
        self._check_names(named)
        rest = self._of_kind(_Parameter.VAR_KEYWORD)
        collected = _Collected()
        args: list[CallArgument] = []
        kwargs: dict[str, CallArgument] = {}
        skipped = False  # behind a parameter that is left out, the others go by keyword
        for name, parameter in self.signature.parameters.items():
            if name == rest or name not in named:
                skipped = skipped or parameter.kind in _BY_POSITION
            elif parameter.kind is _Parameter.VAR_POSITIONAL:
                args += self._spread(name, named[name], collected, complete=not skipped)
            elif parameter.kind in _BY_POSITION and not skipped:
                args.append(self._argument(name, named[name], collected))
            else:
                kwargs[name] = self._argument(name, named[name], collected)
        unknown = [name for name in named if name == rest or name not in self.signature.parameters]
        kwargs |= {name: self._argument(name, named[name], collected) for name in unknown}
        unread = frozenset(inner for name in unknown for inner in kwargs[name].inputs)
        return BoundInputs(Call(tuple(args), kwargs), tuple(collected.inputs), unread)

    def named(self, given: Sequence[object]) -> dict[str, object]:
        """Return positional arguments by the names of their parameters."""
        places, varargs = self._places, self._of_kind(_Parameter.VAR_POSITIONAL)
        named = dict(zip(places, given, strict=False))
        if len(given) > len(places):
            if varargs is None:
                raise ConfigError(
                    f"the model's forward takes {len(places)} positional arguments, got"
                    f" {len(given)}.",
                    hint=f"forward takes {self._text()}.",
                )
            named[varargs] = tuple(given[len(places) :])
        return named

    def _check_names(self, named: Mapping[str, object]) -> None:
        parameters = self.signature.parameters
        unknown = [name for name in named if name not in parameters]
        free = [parameter for parameter in parameters if parameter not in named]
        if self._of_kind(_Parameter.VAR_KEYWORD) is not None:
            # Whether a tensor is read there shows in the trace; a misspelt switch would be lost.
            # `use_cache` is no misspelt `cache`.
            unknown = [
                name
                for name in unknown
                if _is_constant(named[name])
                and did_you_mean(name, [known for known in free if known not in name.split("_")])
            ]
        if unknown:
            what = "is no parameter" if len(unknown) == 1 else "are no parameters"
            way_out = did_you_mean(unknown[0], free)
            if not way_out and len(free) == 1:
                inner = ", ".join(f"'{free[0]}.{name}'" for name in unknown)
                way_out = f"What is in '{free[0]}' is called {inner}."
            raise ConfigError(
                f"{_quoted(unknown)} {what} of the model's forward, which takes {self._text()}.",
                hint=(
                    f"{way_out} Inputs are called as the parameters that take them, in any order;"
                    " or all by other names, in the order of its positional arguments."
                ).strip(),
            )
        missing = [name for name in self._required if name not in named]
        if missing:
            raise ConfigError(
                f"no input is given for {_quoted(missing)} of the model's forward; given:"
                f" {_listed(named)}.",
                hint=f"forward takes {self._text()}.",
            )

    def _argument(self, name: str, value: object, collected: _Collected) -> CallArgument:
        parameter = self.signature.parameters.get(name)
        hint = self.hints.get(name)
        if hint is None and parameter is not None and isinstance(parameter.default, bool):
            hint = bool
        return collected.argument(value, name, hint)

    def _spread(
        self, name: str, value: object, collected: _Collected, *, complete: bool
    ) -> list[CallArgument]:
        """The arguments of `*past`: the items of what is given for it."""
        parts = open_container(value)
        if not complete or parts is None or parts.container not in ("tuple", "list"):
            raise ConfigError(
                f"forward takes '*{name}', which needs a tuple, and all parameters before it.",
                hint=f"forward takes {self._text()}.",
            )
        pairs = zip(parts.keys, parts.items, strict=True)
        return [collected.argument(item, f"{name}.{key}") for key, item in pairs]

    def _text(self) -> str:
        """The parameters, as they are written: `(x, mask=None, *, past)`."""
        parameters = self.signature.parameters.values()
        return str(inspect.Signature([p.replace(annotation=_Parameter.empty) for p in parameters]))


def _nested(given: Mapping[str, object]) -> dict[str, object]:
    """Put `past.0.key` and `past.0.value` into `past`: a tuple with a dict."""
    tree: dict[str, object] = {}
    for name, value in given.items():
        *path, last = name.split(".")
        target = tree
        for key in path:
            inner = target.setdefault(key, _Branch())
            if not isinstance(inner, _Branch):
                raise ConfigError(f"input '{name}' leads into '{key}', which is given itself.")
            target = inner
        if last in target:
            raise ConfigError(f"input '{name}' is given twice, or others lead into it.")
        target[last] = value
    return {name: _without_branches(value, name) for name, value in tree.items()}


class _Branch(dict[str, object]):
    """What paths lead into, and no dict that was given."""


def _without_branches(value: object, path: str) -> object:
    if not isinstance(value, _Branch):
        return value
    items = {key: _without_branches(item, f"{path}.{key}") for key, item in value.items()}
    if not all(key.isdecimal() for key in items):
        return items
    missing = [str(index) for index in range(len(items)) if str(index) not in items]
    if missing:
        raise ConfigError(
            f"input '{path}.{missing[0]}' is missing; given:"
            f" {', '.join(f'{path}.{key}' for key in items)}.",
            hint="Items of a tuple are numbered from 0, without gaps.",
        )
    return tuple(items[str(index)] for index in range(len(items)))


def _hints(annotated: object) -> dict[str, object]:
    try:
        return typing.get_type_hints(annotated)
    except Exception:  # names that are imported for type checkers alone: nothing is known then
        return {}


def _wanted(parts: Parts, hint: object) -> tuple[Parts, dict[str, object]]:
    """What the annotation makes of a container of names or numbers, and the items' annotations.

    A dict becomes the dataclass or named tuple, a tuple the list that the parameter is written
    with; what is of another class stays what it is. `*` stands for every item.
    """
    if parts.container not in ("dict", "tuple", "list"):
        return parts, {}
    for choice in _alternatives(hint):
        origin, inner = typing.get_origin(choice) or choice, typing.get_args(choice)
        if parts.container == "dict":
            if origin in (dict, Mapping) or typing.is_typeddict(origin):
                known = {"*": inner[1]} if len(inner) == 2 else _hints(origin)
                return parts, known
            if isinstance(origin, type) and (
                is_dataclass(origin) or pytree.is_namedtuple_class(origin)
            ):
                return _of_class(parts, origin), _hints(origin)
        elif isinstance(origin, type) and pytree.is_namedtuple_class(origin):
            return _of_class(parts, origin), {}
        elif origin is list:
            return replace(parts, container="list"), {"*": inner[0] if inner else None}
        elif origin is tuple:
            every = len(inner) == 2 and inner[1] is Ellipsis
            known = {"*": inner[0]} if every else dict(zip(parts.keys, inner, strict=False))
            return replace(parts, container="tuple"), known
        elif origin is Sequence:
            return parts, {"*": inner[0] if inner else None}
    return parts, {}


def _of_class(parts: Parts, cls: type) -> Parts:
    """Let a dict or tuple be the items of a dataclass or named tuple."""
    if pytree.is_namedtuple_class(cls):
        return replace(parts, container=name_of(cls), context=None)
    taken = [field_.name for field_ in fields(cls) if field_.init]
    wrong = [key for key in parts.keys if key not in taken]
    if wrong:
        raise ConfigError(
            f"{cls.__name__} has no field {_quoted(wrong)}, only {_listed(taken)}.",
            hint=did_you_mean(wrong[0], taken) or None,
        )
    return replace(parts, container=name_of(cls), context=list(parts.keys))


def _alternatives(hint: object) -> tuple[object, ...]:
    """The members of a union; anything else is its only one."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _is_constant(value: object) -> TypeIs[ConstantValue]:
    return value is None or isinstance(value, (bool, int, float, str))


def _constant(value: ConstantValue, path: str) -> ConstantValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(
            f"'{path}' is {value}, which is not supported as a constant.",
            hint="Give a large number, or set it in the model's own code.",
        )
    # Of a class of its own, such as an IntEnum, its value is what a package can keep.
    if isinstance(value, int):
        return bool(value) if isinstance(value, bool) else int(value)
    if isinstance(value, float):
        return float(value)
    return None if value is None else str.__str__(value)


def _quoted(names: Sequence[str]) -> str:
    return " and ".join(f"'{name}'" for name in names)


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(names) or "none"
