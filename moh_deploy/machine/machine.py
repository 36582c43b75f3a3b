"""Gather all that is known of this machine: packages, GPUs, compilers, native libraries."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Self, cast

from moh_deploy import __version__
from moh_deploy.add_ons import AddedCommand, Group, entry_points, missing_metadata
from moh_deploy.errors import BackendError
from moh_deploy.machine.ask import Failed, ask
from moh_deploy.machine.cpu import CpuFacts, OpenVinoFacts, probe_cpu, probe_openvino
from moh_deploy.machine.gpu import GpuFacts, LibraryFacts, probe_gpu, probe_ort_cuda
from moh_deploy.machine.packages import Packages, probe_packages
from moh_deploy.machine.tools import Tools, gaps_to_build, probe_tools
from moh_deploy.native import INSTALL_ORT_GPU, ORT_CUDA_NAME
from moh_deploy.report.report import FLAT, in_json
from moh_deploy.system.nvidia_driver import DRIVER_HINT, Gpu, takes_cuda
from moh_deploy.system.progress import Progress

# In this order: what PyTorch lacks is to be said of PyTorch, not of our own module.
_EXPORT_NEEDS = ("torch", "onnxscript", "moh_deploy.frontend.export_package")


@dataclass(frozen=True)
class Importable:
    """The answer of a probe that imports modules: all of them could be imported."""


@dataclass(frozen=True)
class Ability:
    """Something that a user may want to do, and what is missing for it."""

    name: str
    how: str | None  # By what it can be done; None: it cannot
    gaps: tuple[Failed, ...]  # What is missing; empty: nothing
    essential: bool = False

    @classmethod
    def of(
        cls, name: str, gaps: Iterable[Failed], how: str | None, *, essential: bool = False
    ) -> Self:
        """Return an ability that is there if it has no gaps."""
        found = tuple(gaps)
        return cls(name, None if found else how, found, essential)

    @property
    @in_json()
    def can(self) -> bool:
        """Tell whether nothing is missing."""
        return not self.gaps


class AddOnFacts(ABC):
    """The facts about a runtime of an add-on: a dataclass, whose fields JSON has in the machine."""

    @abstractmethod
    def found(self) -> Iterable[tuple[str, str | None]]:
        """Return what is there, by name, with its version, or why it is not."""

    @abstractmethod
    def abilities(self, machine: Machine) -> Iterable[Ability]:
        """Return what can be done with it on a machine, and what is missing for the rest."""


RuntimeProbe = Callable[[Path | None], AddOnFacts]
"""What add-ons register in `moh_deploy.runtimes`: looks for the runtime, and takes the library of
plugins that the user names. To import it needs nothing that may be missing: `ask` calls that."""


@dataclass(frozen=True)
class Machine:
    """The facts that were gathered; nothing is judged yet, see `abilities`."""

    moh_deploy: str
    python: str
    platform: str
    packages: Packages
    export: Importable | Failed  # What importing PyTorch and the code of `moh-deploy export` gave
    cpu: CpuFacts
    openvino: OpenVinoFacts
    gpu: GpuFacts | Failed
    tools: Tools
    ort_cuda: LibraryFacts | Failed  # The CUDA library for ONNX Runtime
    add_ons: tuple[AddOnFacts, ...] = field(metadata=FLAT)  # What the runtimes of add-ons found
    broken_add_ons: tuple[Failed, ...] = ()  # The reasons why parts of add-ons cannot be loaded


def imported(*modules: str) -> Importable:
    """Import modules, one after the other."""
    for module in modules:
        import_module(module)
    return Importable()


def look_around(plugin: Path | None, progress: Progress) -> Machine:
    """Probe this machine for all that moh-deploy may use."""
    with progress.step("looking at Python packages"):
        packages = probe_packages()
        # Imported in another process: PyTorch may be broken, and takes seconds and memory.
        export = ask(imported, *_EXPORT_NEEDS)
    with progress.step("running an operator on the CPU"):
        cpu, openvino = probe_cpu(), probe_openvino()
    with progress.step("looking for GPUs and compilers"):
        gpu, tools = probe_gpu(), probe_tools()
    with progress.step("loading native libraries"):
        ort_cuda = probe_ort_cuda()
    with progress.step("asking the runtimes of add-ons"):
        add_ons, broken = probe_add_ons(plugin)
    python, system = platform.python_version(), f"{platform.system()} {platform.machine()}"
    here = (packages, export, cpu, openvino, gpu, tools, ort_cuda)
    return Machine(__version__, python, system, *here, add_ons, broken)


def probe_add_ons(plugin: Path | None) -> tuple[tuple[AddOnFacts, ...], tuple[Failed, ...]]:
    """Ask the runtimes of add-ons; return what they found, and what of add-ons cannot be loaded."""
    found: list[AddOnFacts] = []
    errors = [missing_metadata()]
    for point in entry_points("runtimes").values():
        try:
            found.append(cast(RuntimeProbe, point.load(object))(plugin))
        except BackendError as error:
            errors.append(error)
        except Exception as error:  # A probe of others may raise anything.
            errors.append(point.broken(error))
    # The rest is of no use to `doctor`, and loaded elsewhere: it imports what may be broken.
    others = ask(_broken_add_ons)
    broken = [Failed(error.message, error.hint) for error in errors if error is not None]
    broken += [others] if isinstance(others, Failed) else others
    return tuple(found), tuple(broken)


def _broken_add_ons() -> list[Failed]:
    """Load what add-ons register besides runtimes."""
    broken = []
    forms: Mapping[Group, type]
    forms = {"commands": AddedCommand, "functions": object, "model_kinds": type}
    for group, form in forms.items():
        for point in entry_points(group).values():
            try:
                point.load(form)
            except BackendError as error:
                broken.append(Failed(error.message, error.hint))
    return broken


# Judge what can be done on a machine, from what is there, and say what closes each gap.


def abilities(machine: Machine) -> tuple[Ability, ...]:
    """Return what can be done on a machine, and what is missing for the rest."""
    packages = [Failed(gap.problem or "", gap.fix) for gap in machine.packages.gaps]
    cpu, runtime = machine.cpu, machine.cpu.runtime
    # If the operator runs, a version out of bounds is no gap: it works here.
    cpu_gaps = [*packages, cpu.functions] if isinstance(cpu.functions, Failed) else []
    cuda_gaps = [*cpu_gaps]
    if not isinstance(runtime, Failed) and "CUDAExecutionProvider" not in runtime.providers:
        why = f"ONNX Runtime {runtime.version} has no CUDAExecutionProvider"
        cuda_gaps.append(Failed(why, INSTALL_ORT_GPU))
    cuda_gaps += (*failed(machine.gpu), *failed(machine.ort_cuda))
    cuda_gaps += code_gaps(machine, machine.ort_cuda)
    by_runtime = None if isinstance(runtime, Failed) else f"ONNX Runtime {runtime.version}"
    by_kernels = None if isinstance(cpu.kernels, Failed) else cpu.kernels.instruction_sets[0]
    export_gaps = (*packages, *failed(machine.export))
    openvino_gaps = failed(machine.openvino.kernels)
    by_openvino = f"OpenVINO {machine.openvino.release}"
    return (
        # From what everybody needs to what few do: the report keeps this order.
        Ability.of("export a model", export_gaps, "PyTorch", essential=True),
        Ability.of("run on the CPU", cpu_gaps, by_runtime, essential=True),
        Ability.of("run on the CPU, by kernels", failed(cpu.kernels), by_kernels),
        Ability.of("run on the CPU, in OpenVINO by kernels", openvino_gaps, by_openvino),
        ability_to_build(machine, ORT_CUDA_NAME, "ONNX Runtime", "apt install libonnxruntime-dev"),
        Ability.of("run CUDA kernels in ONNX Runtime", cuda_gaps, by_runtime),
        *(found for facts in machine.add_ons for found in facts.abilities(machine)),
        Ability.of("use all add-ons", machine.broken_add_ons, "their metadata"),
    )


def failed(found: object) -> tuple[Failed, ...]:
    """Return what was found, if that is a failure."""
    return (found,) if isinstance(found, Failed) else ()


def ability_to_build(machine: Machine, library: str, headers: str, get_headers: str) -> Ability:
    """Return the ability to build a native library for GPUs; see `gaps_to_build`."""
    gaps = (Failed(*gap) for gap in gaps_to_build(machine.tools, headers, get_headers))
    return Ability.of(f"build {library}", gaps, f"nvcc {machine.tools.nvcc.version}")


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


def first_gpu(machine: Machine) -> Gpu | None:
    """Return the GPU that a process uses if it is told nothing."""
    return machine.gpu.gpus[0] if isinstance(machine.gpu, GpuFacts) else None
