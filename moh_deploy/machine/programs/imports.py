"""Imports modules, one after the other."""

from __future__ import annotations

from importlib import import_module


def main(*modules: str) -> dict[str, object]:
    for module in modules:
        import_module(module)
    return {}
