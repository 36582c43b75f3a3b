"""Gather all that is known of this machine: packages, GPUs, compilers, native libraries."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from moh_deploy import __version__
from moh_deploy.machine.ask import Failed, ask
from moh_deploy.machine.cpu import CpuFacts, probe_cpu
from moh_deploy.machine.gpu import GpuFacts, probe_gpu
from moh_deploy.machine.libraries import LibraryFacts, probe_ort_cuda, probe_plugin
from moh_deploy.machine.openvino import OpenVinoFacts, probe_openvino
from moh_deploy.machine.packages import Packages, probe_packages
from moh_deploy.machine.tensorrt import TensorRTFacts, probe_tensorrt
from moh_deploy.machine.tools import Tools, probe_tools
from moh_deploy.system.progress import Progress

# In this order: what PyTorch lacks is to be said of PyTorch, not of our own module.
_EXPORT_NEEDS = ("torch", "onnxscript", "moh_deploy.api.export_package")


@dataclass(frozen=True)
class Importable:
    """The answer of a probe that imports modules: all of them could be imported."""


@dataclass(frozen=True)
class Machine:
    """The facts that were gathered; nothing is judged yet, see `abilities`.

    Attributes:
        moh_deploy: Its version.
        python: Its version.
        platform: Operating system and processor.
        packages: Python packages.
        export: What importing PyTorch and the code of `moh-deploy export` gave.
        cpu: ONNX Runtime and the CPU kernels.
        openvino: OpenVINO, and the extension for the CPU kernels.
        gpu: The driver and GPUs.
        tools: What native code is built with.
        plugin: The plugin library for TensorRT.
        ort_cuda: The CUDA library for ONNX Runtime.
        tensorrt: Every TensorRT, installed or not.
    """

    moh_deploy: str
    python: str
    platform: str
    packages: Packages
    export: Importable | Failed
    cpu: CpuFacts
    openvino: OpenVinoFacts
    gpu: GpuFacts | Failed
    tools: Tools
    plugin: LibraryFacts | Failed
    ort_cuda: LibraryFacts | Failed
    tensorrt: tuple[TensorRTFacts, ...]


def imported(*modules: str) -> Importable:
    """Import modules, one after the other."""
    for module in modules:
        import_module(module)
    return Importable()


def look_around(plugin: Path | None, progress: Progress) -> Machine:
    """Probe this machine for all that moh-deploy may use.

    Args:
        plugin: Another plugin library than the installation's.
        progress: What to report steps to.
    """
    with progress.step("looking at Python packages"):
        packages = probe_packages()
        # Imported in another process: PyTorch may be broken, and takes seconds and memory.
        export = ask(imported, *_EXPORT_NEEDS)
    with progress.step("running an operator on the CPU"):
        cpu, openvino = probe_cpu(), probe_openvino()
    with progress.step("looking for GPUs and compilers"):
        gpu, tools = probe_gpu(), probe_tools()
    with progress.step("loading native libraries"):
        library, ort_cuda = probe_plugin(plugin), probe_ort_cuda()
    with progress.step("asking the TensorRTs"):
        # Last: it loads the plugin library that was found above.
        tensorrt = probe_tensorrt(library)
    return Machine(
        moh_deploy=__version__,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages=packages,
        export=export,
        cpu=cpu,
        openvino=openvino,
        gpu=gpu,
        tools=tools,
        plugin=library,
        ort_cuda=ort_cuda,
        tensorrt=tensorrt,
    )
