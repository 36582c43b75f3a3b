"""Imports one of the TensorRTs, loads a plugin library, and lists the creators that it brought."""

from __future__ import annotations

from importlib import import_module

from moh_deploy.errors import BackendError


def main(module: str, library: str = "") -> dict[str, object]:
    trt = import_module(module)
    creators: list[list[str]] = []
    if library:
        registry = trt.get_plugin_registry()
        # None, without a word, is what it gives for whatever is wrong.
        if registry.load_library(library) is None:
            raise BackendError(f"the plugin registry did not take {library}")
        found = (c for c in registry.all_creators if c.plugin_namespace == "moh")
        creators = sorted([c.name, c.plugin_version, c.plugin_namespace] for c in found)
    return {"version": trt.__version__, "creators": creators}
