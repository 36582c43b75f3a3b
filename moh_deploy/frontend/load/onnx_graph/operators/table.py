"""The table from operator to function, which each file of this folder fills."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import TypeVar

from moh_deploy.frontend.load.onnx_graph.call import NodeFunction, NumberFunction
from moh_deploy.ops.op_names import KERNEL_DOMAIN, base_domain

_T = TypeVar("_T")

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

_TENSORS: dict[tuple[str, str], NodeFunction] = {}
_NUMBERS: dict[tuple[str, str], NumberFunction] = {}

ONNX_OPERATORS = MappingProxyType(_TENSORS)
"""By domain and name."""

ON_NUMBERS = MappingProxyType(_NUMBERS)
"""What operators do where all their inputs are `Known`: sizes stay numbers."""


def operator(*names: str, domain: str = "") -> Callable[[NodeFunction], NodeFunction]:
    """Register a function for operators of a domain."""
    return _registrar(_TENSORS, names, domain)


def on_numbers(*names: str) -> Callable[[NumberFunction], NumberFunction]:
    """Register what standard operators do with numbers."""
    return _registrar(_NUMBERS, names, "")


def _registrar(
    table: dict[tuple[str, str], _T], names: tuple[str, ...], domain: str
) -> Callable[[_T], _T]:
    def register(function: _T) -> _T:
        for name in names:
            assert (domain, name) not in table, f"{domain}.{name} is registered twice"
            table[domain, name] = function
        return function

    return register


def known_domain(domain: str) -> str:
    """Return the domain under which the table has a node's operator: bodies share one."""
    return KERNEL_DOMAIN if base_domain(domain) is not None else domain
