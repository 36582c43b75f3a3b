"""The native libraries for NVIDIA GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moh_deploy import native
from moh_deploy.machine.ask import Failed, ask
from moh_deploy.machine.device_code import DeviceCode, device_code
from moh_deploy.runtime.tensorrt.plugin_library import PLUGIN_NAME

ORT_CUDA_NAME = "libmoh_ort_cuda.so"
_COMMANDS = {
    PLUGIN_NAME: "make plugin",
    ORT_CUDA_NAME: f"make cuda && cp build/cuda/{ORT_CUDA_NAME} moh_deploy/native/",
}


@dataclass(frozen=True)
class LibraryFacts:
    """A native library of this version of moh-deploy that can be loaded.

    Attributes:
        code: Which GPUs it has code for.
    """

    path: Path
    code: DeviceCode


def probe_plugin(given: Path | None = None) -> LibraryFacts | Failed:
    """Load the plugin library for TensorRT, the given one or the installation's."""
    return _probe(given or native.FOLDER / PLUGIN_NAME, PLUGIN_NAME, "moh_plugin_version")


def probe_ort_cuda() -> LibraryFacts | Failed:
    """Load the operators for ONNX Runtime's CUDA provider, and register them."""
    path = native.FOLDER / ORT_CUDA_NAME
    found = _probe(path, ORT_CUDA_NAME, "moh_ort_cuda_version")
    if isinstance(found, Failed):
        return found
    return ask(lambda: found, "custom_ops", str(path))


def _probe(path: Path, name: str, version_function: str) -> LibraryFacts | Failed:
    if not path.is_file():
        return Failed(f"there is no {name} in {path.parent}", _how_to_build(name))
    loaded = ask(lambda: path, "library", str(path.resolve()), version_function)
    if isinstance(loaded, Failed):
        return Failed(f"{path}: {loaded.why}", loaded.fix or _how_to_build(name))
    return LibraryFacts(path, device_code(path))


def _how_to_build(name: str) -> str:
    return f"in the sources of moh-deploy: {_COMMANDS[name]}"
