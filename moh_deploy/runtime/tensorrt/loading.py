"""Load an engine into this process: the right TensorRT, the plugin library, then the engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from moh_deploy.errors import BackendError
from moh_deploy.runtime.tensorrt.engine_dir import ENGINE_NAME, EngineManifest
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS, PLUGIN_NAME, Flavour
from moh_deploy.system.bounded_file import sha256_of
from moh_deploy.system.nvidia_driver import read_driver

_DOCTOR = "`moh-deploy doctor` says what is missing here."
_NO_GPU = f"Run it on a machine with an NVIDIA GPU. {_DOCTOR}"
_BUILD_HERE = "Build the engine again with the TensorRT and the GPU that are to run it."
_NAMESPACE = "moh"
_MOST_LINES = 5
# The digest of the library that the registry of each backend took in this process.
_taken: dict[str, str] = {}


@dataclass(frozen=True)
class LoadedEngine:
    """An engine in this process, with the objects that have to live as long as it does."""

    trt: Any  # the module of TensorRT or TensorRT-RTX
    engine: Any  # tensorRT's `ICudaEngine`
    lines: list[str]  # warnings and errors of TensorRT, the latest ones last
    _runtime: Any
    _logger: Any

    def log_tail(self) -> str:
        """Return the last lines of TensorRT's log, to put behind a message."""
        return _tail(self.lines)


def on_first_gpu() -> AbstractContextManager[object]:
    """Make the first GPU current in a block: what is loaded and run is bound to the current one.

    A program that uses torch may have chosen another.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return nullcontext()
    chosen: AbstractContextManager[object] = torch.cuda.device(0)
    return chosen


def open_engine(root: Path, manifest: EngineManifest) -> LoadedEngine:
    """Load what `moh-deploy build` wrote.

    Args:
        root: The directory; its digests have been checked.

    Raises:
        BackendError: There is no GPU, or not one that it was built for; TensorRT is missing or of
            another version; another plugin library is in this process; or TensorRT refuses.
    """
    flavour = FLAVOURS[manifest.backend]
    if manifest.builder.strip_weights:
        raise BackendError(
            f"{root} was built without its weights (--strip-weights), and cannot run as it is.",
            hint="Refit it from the lowered model (--keep-onnx) by TensorRT's OnnxParserRefitter,"
            " or build it with its weights.",
        )
    # The cheap checks first, with messages that say what to do; TensorRT says little of a missing
    # GPU.
    _check_gpu(root, manifest)
    flavour.require_installed()
    trt = import_module(flavour.module)
    _check_version(root, manifest, flavour, str(trt.__version__))
    lines: list[str] = []
    logger = _logger(trt, lines)
    # The library first: an engine with plugins is not read without their creators.
    runtime = trt.Runtime(logger)
    if manifest.version_compatible:
        # Such an engine brings along the code that runs it.
        runtime.engine_host_code_allowed = True
    _make_plugins_known(trt, runtime, root, manifest)
    engine = runtime.deserialize_cuda_engine((root / ENGINE_NAME).read_bytes())
    if engine is None:
        raise BackendError(
            f"{flavour.title} cannot load {root / ENGINE_NAME}.{_tail(lines)}", hint=_BUILD_HERE
        )
    return LoadedEngine(trt, engine, lines, runtime, logger)


def _check_gpu(root: Path, manifest: EngineManifest) -> None:
    try:
        gpu = read_driver().gpus[0]
    except BackendError as error:
        raise BackendError(f"{root} cannot run here: {error.message}.", hint=_NO_GPU) from error
    targets = manifest.compute_capabilities
    if targets and gpu.dotted not in targets:
        raise BackendError(
            f"{root} was built for GPUs of compute capability {', '.join(targets)}; here is {gpu}.",
            hint=f"Build it with --compute-capability {gpu.dotted}.",
        )
    built_on = manifest.versions.get("compute capability")
    if targets or built_on is None or manifest.hardware_compatibility == "AMPERE_PLUS":
        return
    if built_on != gpu.dotted:
        raise BackendError(
            f"{root} was built on a GPU of compute capability {built_on}; here is {gpu}.",
            hint=_BUILD_HERE,
        )


def _check_version(root: Path, manifest: EngineManifest, flavour: Flavour, here: str) -> None:
    built_with = manifest.versions.get(flavour.title)
    run_by, runs = "the version that built them", built_with == here
    if manifest.version_compatible and built_with is not None:
        run_by = "that version and later ones of the same first number"
        # Of a version such as 10.9.0.34 or 10.9.0.dev2: what is no number ends it.
        built, found = (
            [int(part) for part in version.split(".") if part.isdecimal()]
            for version in (built_with, here)
        )
        runs = runs or (built[:1] == found[:1] and found >= built)
    if not runs:
        raise BackendError(
            f"{root} was built by {flavour.title} {built_with}, here is {here}: engines of its kind"
            f" run with {run_by}.",
            hint=_BUILD_HERE,
        )


def _logger(trt: Any, lines: list[str]) -> Any:
    """Return a logger; TensorRT keeps to the first one of a process, so another may hear it all."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                lines.append(f"{severity.name}: {text}")
                del lines[:-_MOST_LINES]  # it may warn at every run

    return Logger()


def _make_plugins_known(trt: Any, runtime: Any, root: Path, manifest: EngineManifest) -> None:
    """Load the plugin library, once a process: TensorRT takes none twice.

    It is never taken out again: another engine may be using it.
    """
    if manifest.plugin is None:
        return
    if manifest.plugin.file is None:
        # The library is inside of the engine: let TensorRT load it from there.
        runtime.engine_host_code_allowed = True
        return
    registry, path = trt.get_plugin_registry(), root / manifest.plugin.file
    sha256, taken = manifest.plugin.sha256, _taken.get(manifest.backend)
    # A library of moh-deploy is in this process already: its content has to be the same.
    if any(creator.plugin_namespace == _NAMESPACE for creator in registry.all_creators):
        others = [library for library in _mapped_libraries() if sha256_of(library) != sha256]
        # A library stays when its file is gone, as it is where an engine was built again.
        if not others and taken in (None, sha256):
            return
        raise BackendError(
            f"{others[0]} is in this process already, and is another library than {path}."
            if others
            else f"another plugin library than {path} is in this process already.",
            hint="Run engines of different plugin libraries in different processes.",
        )
    # None, without a word, is what it gives for whatever is wrong.
    if registry.load_library(str(path.resolve())) is None:
        raise BackendError(f"TensorRT's plugin registry did not take {path}.", hint=_DOCTOR)
    _taken[manifest.backend] = sha256


def _mapped_libraries() -> Iterator[Path]:
    """Return the plugin libraries in this process's memory, where the system says."""
    maps = Path("/proc/self/maps")
    # The path is the sixth column; it may hold blanks.
    lines = maps.read_text().splitlines() if maps.is_file() else []
    paths = dict.fromkeys(line.split(maxsplit=5)[-1] for line in lines)
    return (Path(path) for path in paths if Path(path).name == PLUGIN_NAME and Path(path).is_file())


def _tail(lines: list[str]) -> str:
    return "".join(f"\n  {line}" for line in lines)
