"""Judge what can be done on a machine, from what is there, and say what closes each gap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from moh_deploy.machine.ask import Failed
from moh_deploy.machine.gpu import GpuFacts
from moh_deploy.machine.libraries import ORT_CUDA_NAME, LibraryFacts
from moh_deploy.machine.machine import Machine
from moh_deploy.machine.tensorrt import CreatorRegistry, TensorRTFacts
from moh_deploy.machine.tools import OLDEST_NVCC
from moh_deploy.report.json import in_json
from moh_deploy.runtime.tensorrt.driver import DRIVER_HINT, Gpu, takes_cuda
from moh_deploy.runtime.tensorrt.flavour import FLAVOURS
from moh_deploy.runtime.tensorrt.plugin_library import PLUGIN_NAME

# Library to whose headers it is built with.
_BUILT_WITH = {PLUGIN_NAME: "TensorRT", ORT_CUDA_NAME: "ONNX Runtime"}
_GET_HEADERS = {
    "TensorRT": "pip install 'moh-deploy[test-tensorrt]' has them; those of an installed TensorRT"
    " in another folder than the usual ones are named by TENSORRT_INCLUDE_DIR",
    "ONNX Runtime": "apt install libonnxruntime-dev",
}
_FLAVOURS = {flavour.title: flavour for flavour in FLAVOURS.values()}


@dataclass(frozen=True)
class Ability:
    """Something that a user may want to do, and what is missing for it.

    Attributes:
        name: What.
        how: By what it can be done; None: it cannot.
        gaps: What is missing; empty: nothing.
        essential: Without it, moh-deploy is of no use here.
    """

    name: str
    how: str | None
    gaps: tuple[Failed, ...]
    essential: bool = False

    @property
    @in_json()
    def can(self) -> bool:
        """Whether nothing is missing."""
        return not self.gaps


def abilities(machine: Machine) -> tuple[Ability, ...]:
    """Return what can be done on a machine, and what is missing for the rest."""
    by_name = {facts.name: facts for facts in machine.tensorrt}
    rtx, full = by_name["TensorRT-RTX"], by_name["TensorRT"]
    rtx_gaps, full_gaps = tuple(_tensorrt_gaps(rtx)), tuple(_tensorrt_gaps(full))
    # Tuples: several abilities have the same gaps, and an iterator is empty after the first.
    gpu_gaps, rtx_gpu_gaps = _failed(machine.gpu), tuple(_rtx_gpu_gaps(machine))
    nvcc = f"nvcc {machine.tools.nvcc.version}"
    on_gpu = tuple(_code_gaps(machine, machine.plugin))
    return (
        # From what everybody needs to what few do: the report keeps this order.
        _ability(
            "export a model",
            (*_package_gaps(machine), *_failed(machine.export)),
            "PyTorch",
            essential=True,
        ),
        _ability("run on the CPU", _cpu_gaps(machine), _runtime(machine), essential=True),
        _ability(
            "run on the CPU, by kernels",
            _failed(machine.cpu.kernels),
            None
            if isinstance(machine.cpu.kernels, Failed)
            else machine.cpu.kernels.instruction_sets[0],
        ),
        _ability(
            "run on the CPU, in OpenVINO by kernels",
            _failed(machine.openvino.kernels),
            None
            if isinstance(machine.openvino.kernels, Failed)
            else f"OpenVINO {machine.openvino.release}",
        ),
        *(
            _ability(f"build {name}", _build_gaps(machine, headers), nvcc)
            for name, headers in _BUILT_WITH.items()
        ),
        _ability("build TensorRT-RTX engines", rtx_gaps, _title(rtx)),
        _ability(
            "build TensorRT-RTX engines, with kernels",
            (*rtx_gaps, *_plugin_gaps(machine, rtx)),
            _title(rtx),
        ),
        _ability("run TensorRT-RTX engines", (*rtx_gaps, *rtx_gpu_gaps), _title(rtx)),
        _ability("build and run TensorRT engines", (*full_gaps, *gpu_gaps), _title(full)),
        _ability(
            "build and run TensorRT engines, with kernels",
            (*full_gaps, *gpu_gaps, *_plugin_gaps(machine, full), *on_gpu),
            _title(full),
        ),
        _ability("moh-deploy run, verify: engines", _runner_gaps(machine), "Polygraphy"),
        _ability("run CUDA kernels in ONNX Runtime", _ort_cuda_gaps(machine), _runtime(machine)),
    )


def _ability(
    name: str, gaps: Iterable[Failed], how: str | None, *, essential: bool = False
) -> Ability:
    found = tuple(gaps)
    return Ability(name, None if found else how, found, essential)


def _failed(found: object) -> tuple[Failed, ...]:
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


def _build_gaps(machine: Machine, headers: str) -> Iterator[Failed]:
    tools, oldest = machine.tools, ".".join(map(str, OLDEST_NVCC))
    install_cuda = f"install CUDA's toolkit {oldest} or newer, and put nvcc on PATH"
    if tools.nvcc.path is None:
        yield Failed("nvcc was not found", install_cuda)
    elif not tools.nvcc.at_least(OLDEST_NVCC):
        yield Failed(f"nvcc is {tools.nvcc.version}, expected {oldest} or newer", install_cuda)
    for tool, fix in ((tools.cmake, "apt install cmake make"), (tools.compiler, "apt install g++")):
        if tool.path is None:
            yield Failed(f"{tool.name} was not found", fix)
    if tools.headers[headers] is None:
        yield Failed(f"the headers of {headers} were not found", _GET_HEADERS[headers])


def _tensorrt_gaps(facts: TensorRTFacts) -> Iterator[Failed]:
    if isinstance(facts.alone, Failed):
        yield facts.alone
    elif facts.alone.release < _FLAVOURS[facts.name].oldest:
        oldest = ".".join(map(str, _FLAVOURS[facts.name].oldest))
        why = f"{facts.name} is {facts.alone.version}, expected {oldest} or later"
        yield Failed(why, "pip install --upgrade what it came from")


def _plugin_gaps(machine: Machine, facts: TensorRTFacts) -> Iterator[Failed]:
    if isinstance(machine.plugin, Failed):
        yield machine.plugin
    # `with_plugin` is None without TensorRT or without a library: both are said elsewhere.
    elif isinstance(facts.with_plugin, Failed):
        why = f"{facts.name} with {machine.plugin.path}: {facts.with_plugin.why}"
        yield Failed(why, f"build {PLUGIN_NAME} again")


def _rtx_gpu_gaps(machine: Machine) -> Iterator[Failed]:
    yield from _failed(machine.gpu)
    gpu = _first_gpu(machine)
    if gpu is not None and gpu.dotted not in _FLAVOURS["TensorRT-RTX"].targets:
        yield Failed(f"TensorRT-RTX has nothing for {gpu}", "build with TensorRT there")


def _runner_gaps(machine: Machine) -> Iterator[Failed]:
    yield from _failed(machine.gpu)
    found = next((facts for facts in machine.packages.found if facts.name == "polygraphy"), None)
    if found is None or found.problem:
        why = "polygraphy is not installed" if found is None else str(found.problem)
        yield Failed(why, "pip install 'moh-deploy[polygraphy]'")


def _code_gaps(machine: Machine, library: LibraryFacts | Failed) -> Iterator[Failed]:
    gpu = _first_gpu(machine)
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
    yield from (*_failed(machine.gpu), *_failed(machine.ort_cuda))
    yield from _code_gaps(machine, machine.ort_cuda)


def _first_gpu(machine: Machine) -> Gpu | None:
    return machine.gpu.gpus[0] if isinstance(machine.gpu, GpuFacts) else None


def _title(facts: TensorRTFacts) -> str | None:
    return (
        f"{facts.name} {facts.alone.version}" if isinstance(facts.alone, CreatorRegistry) else None
    )


def _runtime(machine: Machine) -> str | None:
    runtime = machine.cpu.runtime
    return None if isinstance(runtime, Failed) else f"ONNX Runtime {runtime.version}"
