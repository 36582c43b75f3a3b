"""Import TensorRT, TensorRT-RTX and the lean runtime, and try the plugin library in each.

The part of the add-on that `doctor` asks.
"""

import ctypes
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from moh_deploy import native
from moh_deploy.errors import BackendError
from moh_deploy.machine.ask import Failed, ask
from moh_deploy.machine.gpu import LibraryFacts, probe_library
from moh_deploy.machine.machine import (
    Ability,
    AddOnFacts,
    Machine,
    ability_to_build,
    code_gaps,
    failed,
    first_gpu,
)
from moh_deploy.machine.tools import GET_TENSORRT_HEADERS
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS, PLUGIN_NAME

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
_FLAVOURS = {flavour.title: flavour for flavour in FLAVOURS.values()}


@dataclass(frozen=True)
class Creator:
    """A creator of plugins in a registry."""

    name: str
    version: str
    namespace: str


@dataclass(frozen=True)
class CreatorRegistry:
    """A registry of plugins, in a process that a TensorRT was imported in."""

    version: str
    creators: tuple[Creator, ...]  # Those of namespace `moh`

    @property
    def release(self) -> tuple[int, int]:
        """The first two numbers of the version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


@dataclass(frozen=True)
class TensorRTFacts:
    """The state of one TensorRT, alone and with the plugin library."""

    name: str  # Of `MODULES`
    alone: CreatorRegistry | Failed  # What importing it gave
    # What loading the plugin library into its registry gave; None: there is no library to load, or
    # no TensorRT.
    with_plugin: CreatorRegistry | Failed | None

    @property
    def title(self) -> str | None:
        """Its name and version; None: it is not there."""
        alone = self.alone
        return f"{self.name} {alone.version}" if isinstance(alone, CreatorRegistry) else None

    def gaps(self) -> Iterator[Failed]:
        """Return what it lacks to be used."""
        if isinstance(self.alone, Failed):
            yield self.alone
        elif self.alone.release < _FLAVOURS[self.name].oldest:
            oldest = ".".join(map(str, _FLAVOURS[self.name].oldest))
            why = f"{self.name} is {self.alone.version}, expected {oldest} or later"
            yield Failed(why, "pip install --upgrade what it came from")

    def __str__(self) -> str:
        if isinstance(self.alone, Failed):
            return self.alone.why
        if self.with_plugin is None:
            return self.alone.version
        if isinstance(self.with_plugin, Failed):
            return f"{self.alone.version}; with the plugin library: {self.with_plugin.why}"
        creators = [f"{c.namespace}::{c.name} {c.version}" for c in self.with_plugin.creators]
        return f"{self.alone.version}, registers {', '.join(creators) or 'nothing'}"


@dataclass(frozen=True)
class EngineFacts(AddOnFacts):
    """Whatever engines are built and run with."""

    plugin: LibraryFacts | Failed
    tensorrt: tuple[TensorRTFacts, ...]

    def found(self) -> Iterator[tuple[str, str]]:
        yield PLUGIN_NAME, self.plugin.why if isinstance(self.plugin, Failed) else str(self.plugin)
        for facts in self.tensorrt:
            yield facts.name, str(facts)

    def abilities(self, machine: Machine) -> Iterator[Ability]:
        by_name = {facts.name: facts for facts in self.tensorrt}
        rtx, full = by_name["TensorRT-RTX"], by_name["TensorRT"]
        # Tuples: several abilities have the same gaps, and an iterator is empty after the first.
        rtx_gaps, gaps = tuple(rtx.gaps()), (*full.gaps(), *failed(machine.gpu))
        with_kernels = (*gaps, *self._plugin_gaps(full), *code_gaps(machine, self.plugin))
        rtx_gpu_gaps, runner_gaps = list(failed(machine.gpu)), list(failed(machine.gpu))
        gpu = first_gpu(machine)
        if gpu is not None and gpu.dotted not in _FLAVOURS[rtx.name].targets:
            why = f"{rtx.name} has nothing for {gpu}"
            rtx_gpu_gaps.append(Failed(why, "build with TensorRT there"))
        packages = {facts.name: facts.problem for facts in machine.packages.found}
        why_not = packages.get("polygraphy", "polygraphy is not installed")
        if why_not:
            runner_gaps.append(Failed(why_not, "pip install 'moh-deploy[polygraphy]'"))
        rtx_kernels = (*rtx_gaps, *self._plugin_gaps(rtx))
        yield ability_to_build(machine, PLUGIN_NAME, "TensorRT", GET_TENSORRT_HEADERS)
        yield Ability.of("build TensorRT-RTX engines", rtx_gaps, rtx.title)
        yield Ability.of("build TensorRT-RTX engines, with kernels", rtx_kernels, rtx.title)
        yield Ability.of("run TensorRT-RTX engines", (*rtx_gaps, *rtx_gpu_gaps), rtx.title)
        yield Ability.of("build and run TensorRT engines", gaps, full.title)
        yield Ability.of("build and run TensorRT engines, with kernels", with_kernels, full.title)
        yield Ability.of("moh-deploy run, verify: engines", runner_gaps, "Polygraphy")

    def _plugin_gaps(self, facts: TensorRTFacts) -> Iterator[Failed]:
        if isinstance(self.plugin, Failed):
            yield self.plugin
        # `with_plugin` is None without TensorRT or without a library: both are said elsewhere.
        elif isinstance(facts.with_plugin, Failed):
            why = f"{facts.name} with {self.plugin.path}: {facts.with_plugin.why}"
            yield Failed(why, f"build {PLUGIN_NAME} again")


def probe_engines(plugin: Path | None) -> EngineFacts:
    """Look for what engines need: see `machine.RuntimeProbe`."""
    library = probe_plugin(plugin)
    # Last: it loads the plugin library that was found above.
    return EngineFacts(library, probe_tensorrt(library))


def probe_plugin(given: Path | None = None) -> LibraryFacts | Failed:
    """Load the plugin library for TensorRT, the given one or the installation's."""
    path = given or native.FOLDER / PLUGIN_NAME
    found = probe_library(path, "moh_plugin", command="make plugin")
    if isinstance(found, Failed):
        return found
    cuda = ask(_plugin_cuda, str(found.path.resolve()))
    return replace(found, cuda=None if isinstance(cuda, Failed) else cuda)


def _plugin_cuda(path: str) -> int | None:
    """Load the plugin library, and ask it for the version of CUDA that it needs."""
    function = getattr(ctypes.CDLL(path), "moh_plugin_cuda", None)
    return None if function is None else int(function())


def probe_tensorrt(plugin: LibraryFacts | Failed) -> tuple[TensorRTFacts, ...]:
    """Import each, and load the plugin library into its registry."""
    library = None if isinstance(plugin, Failed) else plugin.path
    return tuple(_probe(name, modules, library) for name, modules in MODULES.items())


def _probe(name: str, modules: tuple[str, ...], library: Path | None) -> TensorRTFacts:
    # Looked up, not imported: that happens in another process.
    module = next(filter(importlib.util.find_spec, modules), None)
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
