"""Judge what can be done on a machine, from what is there, and say what closes each gap."""

from __future__ import annotations

from collections.abc import Iterator

from moh_deploy.machine.ask import Failed
from moh_deploy.machine.gpu import GpuFacts
from moh_deploy.machine.libraries import ORT_CUDA_NAME, LibraryFacts
from moh_deploy.machine.machine import Ability, Machine
from moh_deploy.machine.tools import OLDEST_NVCC
from moh_deploy.system.nvidia_driver import DRIVER_HINT, Gpu, takes_cuda


def abilities(machine: Machine) -> tuple[Ability, ...]:
    """Return what can be done on a machine, and what is missing for the rest."""
    return (
        # From what everybody needs to what few do: the report keeps this order.
        Ability.of(
            "export a model",
            (*_package_gaps(machine), *failed(machine.export)),
            "PyTorch",
            essential=True,
        ),
        Ability.of("run on the CPU", _cpu_gaps(machine), _runtime(machine), essential=True),
        Ability.of(
            "run on the CPU, by kernels",
            failed(machine.cpu.kernels),
            None
            if isinstance(machine.cpu.kernels, Failed)
            else machine.cpu.kernels.instruction_sets[0],
        ),
        Ability.of(
            "run on the CPU, in OpenVINO by kernels",
            failed(machine.openvino.kernels),
            None
            if isinstance(machine.openvino.kernels, Failed)
            else f"OpenVINO {machine.openvino.release}",
        ),
        ability_to_build(machine, ORT_CUDA_NAME, "ONNX Runtime", "apt install libonnxruntime-dev"),
        Ability.of("run CUDA kernels in ONNX Runtime", _ort_cuda_gaps(machine), _runtime(machine)),
        *(found for facts in machine.add_ons for found in facts.abilities(machine)),
        Ability.of("use all add-ons", machine.broken_add_ons, "their metadata"),
    )


def failed(found: object) -> tuple[Failed, ...]:
    """Return what was found, if that is a failure."""
    return (found,) if isinstance(found, Failed) else ()


def _cpu_gaps(machine: Machine) -> Iterator[Failed]:
    functions = machine.cpu.functions
    # If the operator runs, a version out of bounds is no gap: it works here.
    if isinstance(functions, Failed):
        yield from _package_gaps(machine)
        yield functions


def _package_gaps(machine: Machine) -> Iterator[Failed]:
    for gap in machine.packages.gaps:
        yield Failed(gap.problem or "", gap.fix)


def ability_to_build(machine: Machine, library: str, headers: str, get_headers: str) -> Ability:
    """Return the ability to build a native library for GPUs.

    Args:
        machine: Where.
        library: Its name.
        headers: The runtime that it needs the headers of.
        get_headers: How to get them.
    """
    tools, gaps = machine.tools, []
    oldest = ".".join(map(str, OLDEST_NVCC))
    install_cuda = f"install CUDA's toolkit {oldest} or newer, and put nvcc on PATH"
    if tools.nvcc.path is None:
        gaps.append(Failed("nvcc was not found", install_cuda))
    elif not tools.nvcc.at_least(OLDEST_NVCC):
        why = f"nvcc is {tools.nvcc.version}, expected {oldest} or newer"
        gaps.append(Failed(why, install_cuda))
    for tool, fix in ((tools.cmake, "apt install cmake make"), (tools.compiler, "apt install g++")):
        if tool.path is None:
            gaps.append(Failed(f"{tool.name} was not found", fix))
    if tools.headers[headers] is None:
        gaps.append(Failed(f"the headers of {headers} were not found", get_headers))
    return Ability.of(f"build {library}", gaps, f"nvcc {tools.nvcc.version}")


def code_gaps(machine: Machine, library: LibraryFacts | Failed) -> Iterator[Failed]:
    """Return the reasons why the machine's GPU does not run the code of a library."""
    gpu = first_gpu(machine)
    # Either is a gap of its own already.
    if gpu is None or isinstance(library, Failed):
        return
    if not library.code.runs_on(gpu.compute_capability):
        arch = gpu.compute_capability
        yield Failed(
            f"{library.path} has no code for {gpu}",
            f"build it again with -DMOH_CUDA_ARCHITECTURES={arch}; 8.0 is the least",
        )
    assert isinstance(machine.gpu, GpuFacts)
    if library.cuda is not None and not takes_cuda(machine.gpu.cuda, library.cuda):
        yield Failed(
            f"the driver takes CUDA {machine.gpu.cuda}, and {library.path} was compiled with"
            f" {library.cuda}",
            DRIVER_HINT,
        )


def _ort_cuda_gaps(machine: Machine) -> Iterator[Failed]:
    yield from _cpu_gaps(machine)
    runtime = machine.cpu.runtime
    if not isinstance(runtime, Failed) and "CUDAExecutionProvider" not in runtime.providers:
        yield Failed(
            f"ONNX Runtime {runtime.version} has no CUDAExecutionProvider",
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu",
        )
    yield from (*failed(machine.gpu), *failed(machine.ort_cuda))
    yield from code_gaps(machine, machine.ort_cuda)


def first_gpu(machine: Machine) -> Gpu | None:
    """Return the GPU that a process uses if it is told nothing."""
    return machine.gpu.gpus[0] if isinstance(machine.gpu, GpuFacts) else None


def _runtime(machine: Machine) -> str | None:
    runtime = machine.cpu.runtime
    return None if isinstance(runtime, Failed) else f"ONNX Runtime {runtime.version}"
