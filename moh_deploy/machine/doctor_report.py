"""The report of `doctor`: what is installed on a machine, and what can be done there."""

from collections.abc import Iterator
from dataclasses import dataclass

from moh_deploy.errors import MoHDeployError, ValidationError
from moh_deploy.machine.ask import Failed
from moh_deploy.machine.cpu import CpuRun, OpenVinoFacts
from moh_deploy.machine.machine import Ability, Machine
from moh_deploy.native import ORT_CUDA_NAME
from moh_deploy.report.document import Block, Document, Table, Text
from moh_deploy.report.report import Report

Row = tuple[str | None, ...]

_CAN_COLUMNS = ("what", "", "by, or why not")


@dataclass(frozen=True)
class DoctorReport(Report):
    """One look at a machine."""

    machine: Machine
    abilities: tuple[Ability, ...]

    @property
    def failure(self) -> MoHDeployError | None:
        """The error that the command ends with; None if all that is essential can be done."""
        lost = [ability for ability in self.abilities if ability.essential and not ability.can]
        if not lost:
            return None
        whys = (f"cannot {ability.name}: {ability.gaps[0].why.rstrip('.')}" for ability in lost)
        reasons = "; ".join(whys)
        return ValidationError(f"{reasons}.", hint=lost[0].gaps[0].fix)

    def document(self) -> Document:
        """Return what it says."""
        machine, packages = self.machine, self.machine.packages
        about = f"moh-deploy {machine.moh_deploy}, Python {machine.python}, {machine.platform}"
        can = "all that is essential can be done here"
        cannot = "NOT ALL THAT IS ESSENTIAL CAN BE DONE HERE"
        is_good = self.failure is None
        blocks: list[Block] = [Text(can if is_good else cannot, is_good), Text(about)]
        if not packages.known:
            blocks.append(Text("moh-deploy runs from files that were not installed: pip install ."))
        abilities = []
        for ability in self.abilities:
            why = ability.how if ability.can else "; ".join(gap.why for gap in ability.gaps)
            abilities.append((ability.name, ability.can, why))
        columns = ("package", "version", "expected", "")
        rows = []
        for facts in packages.found:
            need = facts.problem or ("" if facts.required else "optional")
            rows.append((facts.name, facts.version, facts.expected, need))
        blocks += (
            Table("Python packages", columns, rows),
            Table("native code and GPUs", ("what", "found"), list(_native_rows(machine))),
            Table("can do here", _CAN_COLUMNS, abilities),
            Table("to close the gaps", ("gap", "next step"), _fix_rows(machine, self.abilities)),
        )
        return Document("doctor", tuple(blocks))


def _native_rows(machine: Machine) -> Iterator[Row]:
    runtime, cpu, gpu, tools = machine.cpu.runtime, machine.cpu, machine.gpu, machine.tools
    yield "ONNX Runtime", runtime.why if isinstance(runtime, Failed) else runtime.describe()
    yield "CPU kernels", f"{cpu.library}: {_ran(cpu.kernels)}" if cpu.library else _ran(cpu.kernels)
    yield "function bodies", _ran(cpu.functions)
    yield "OpenVINO", _openvino(machine.openvino)
    if isinstance(gpu, Failed):
        yield "GPU", gpu.why
    else:
        driver = f"driver {gpu.driver or 'of unknown version'}, CUDA {gpu.cuda}"
        yield "GPU", f"{', '.join(map(str, gpu.gpus))}; {driver}"
    for tool in (tools.nvcc, tools.cmake, tools.compiler):
        yield tool.name, f"{tool.version or '?'}, {tool.path}" if tool.path else None
    for name, folder in tools.headers.items():
        yield f"headers of {name}", None if folder is None else str(folder)
    library, run = machine.ort_cuda, machine.cuda_run
    found = library.why if isinstance(library, Failed) else str(library)
    yield ORT_CUDA_NAME, found if run is None else f"{found}; {_ran(run)}"
    for facts in machine.add_ons:
        yield from facts.found()


def _ran(run: CpuRun | Failed) -> str:
    if isinstance(run, Failed):
        return run.why
    others = f" (also: {', '.join(run.instruction_sets[1:])})" if run.instruction_sets[1:] else ""
    on = f" on {run.instruction_sets[0]}{others}" if run.instruction_sets else ""
    return f"an operator ran{on}, and is right"


def _openvino(facts: OpenVinoFacts) -> str:
    if isinstance(facts.release, Failed):
        return facts.release.why
    if isinstance(facts.kernels, Failed):
        return f"{facts.release}; {facts.kernels.why}"
    kernels = f"an operator ran on {facts.kernels.instruction_sets[0]}, and is right"
    return f"{facts.release}; {facts.extension}, built for it: {kernels}"


def _fix_rows(machine: Machine, abilities: tuple[Ability, ...]) -> list[Row]:
    """Return each gap once."""
    packages = [(facts.problem, facts.fix) for facts in machine.packages.found if facts.problem]
    gaps = [(gap.why, gap.fix) for ability in abilities for gap in ability.gaps if gap.fix]
    return list(dict.fromkeys([*packages, *gaps]))
