"""Import TensorRT, TensorRT-RTX and the lean runtime, and try the plugin library in each."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from moh_deploy.errors import BackendError
from moh_deploy.machine.ask import Failed, ask
from moh_deploy.machine.libraries import LibraryFacts

# Name to the modules that may hold it, the first one that is there.
MODULES: Mapping[str, tuple[str, ...]] = {
    "TensorRT": ("tensorrt",),
    "TensorRT-RTX": ("tensorrt_rtx",),
    "TensorRT lean": ("tensorrt_lean", "tensorrt_lean_bindings"),
}
_INSTALL = {
    "TensorRT": "pip install tensorrt (it needs an NVIDIA GPU to build and to run engines)",
    "TensorRT-RTX": "pip install tensorrt-rtx-cu13",
    "TensorRT lean": "pip install tensorrt-lean",
}


@dataclass(frozen=True)
class Creator:
    """A creator of plugins in a registry."""

    name: str
    version: str
    namespace: str


@dataclass(frozen=True)
class CreatorRegistry:
    """A registry of plugins, in a process that a TensorRT was imported in.

    Attributes:
        version: Of that TensorRT.
        creators: Those of namespace `moh`.
    """

    version: str
    creators: tuple[Creator, ...]

    @property
    def release(self) -> tuple[int, int]:
        """The first two numbers of the version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


@dataclass(frozen=True)
class TensorRTFacts:
    """The state of one TensorRT, alone and with the plugin library.

    Attributes:
        name: Of `MODULES`.
        alone: What importing it gave.
        with_plugin: What loading the plugin library into its registry gave; None: there is no
            library to load, or no TensorRT.
    """

    name: str
    alone: CreatorRegistry | Failed
    with_plugin: CreatorRegistry | Failed | None


def probe_tensorrt(plugin: LibraryFacts | Failed) -> tuple[TensorRTFacts, ...]:
    """Import each, and load the plugin library into its registry."""
    library = None if isinstance(plugin, Failed) else plugin.path
    return tuple(_probe(name, modules, library) for name, modules in MODULES.items())


def _probe(name: str, modules: tuple[str, ...], library: Path | None) -> TensorRTFacts:
    # Looked up, not imported: that happens in another process.
    module = next(
        (module for module in modules if importlib.util.find_spec(module) is not None), None
    )
    if module is None:
        missing = f"{name} is not installed: there is no Python package '{modules[0]}'"
        return TensorRTFacts(name, Failed(missing, _INSTALL[name]), None)
    alone = ask(_registry, module)
    if isinstance(alone, Failed):
        return TensorRTFacts(name, Failed(f"{module}: {alone.why}", _INSTALL[name]), None)
    if library is None:
        return TensorRTFacts(name, alone, None)
    # A process for each question: a registry takes a library only once, and may crash over it.
    return TensorRTFacts(name, alone, ask(_registry, module, str(library.resolve())))


def _registry(module: str, library: str = "") -> CreatorRegistry:
    """Import one, load a plugin library, and list the creators that it brought."""
    trt = import_module(module)
    if not library:
        return CreatorRegistry(trt.__version__, ())
    registry = trt.get_plugin_registry()
    # None, without a word, is what it gives for whatever is wrong.
    if registry.load_library(library) is None:
        raise BackendError(f"the plugin registry did not take {library}")
    # TensorRT brings creators of its own, under other namespaces.
    creators = [c for c in registry.all_creators if c.plugin_namespace == "moh"]
    found = sorted((c.name, c.plugin_version, c.plugin_namespace) for c in creators)
    return CreatorRegistry(trt.__version__, tuple(Creator(*group) for group in found))
