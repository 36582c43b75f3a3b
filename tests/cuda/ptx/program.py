"""An entry, decoded once: each instruction is a function of the machine and a mask."""

from dataclasses import dataclass

from tests.cuda.ptx.element_types import BOOL, DTYPES, U32
from tests.cuda.ptx.errors import SyntaxFault, Unsupported
from tests.cuda.ptx.instructions.registry import COLLECTIVES, Decoding, Step, decoder_of
from tests.cuda.ptx.layout import Layout
from tests.cuda.ptx.machine import Machine
from tests.cuda.ptx.operands import Mask, Read, reader
from tests.cuda.ptx.syntax import Entry, Instruction, Register, Symbol


@dataclass(frozen=True)
class Branch:
    """To a target, where the guard is true."""

    target: int
    guard: Read | None


@dataclass(frozen=True)
class Exit:
    """The thread ends, where the guard is true."""

    guard: Read | None


@dataclass(frozen=True)
class Barrier:
    """The threads of a block wait for each other."""

    text: str


Control = Branch | Exit | Barrier


@dataclass(frozen=True)
class Program:
    """A decoded entry.

    Attributes:
        steps: By position; at a control it does nothing.
        controls: What changes the order, by position.
        members: For positions of instructions that a warp's threads run together: which threads
            of it take part, as bits.
        stops: For each position, the next control or label behind it.
        granule: Bytes of the smallest access to shared memory.
    """

    entry: Entry
    layout: Layout
    steps: list[Step]
    controls: dict[int, Control]
    members: dict[int, Read]
    stops: list[int]
    granule: int


def decode(entry: Entry) -> Program:
    """Decode an entry.

    Raises:
        Unsupported: It has an instruction that is not interpreted.
    """
    layout = Layout(entry)
    steps: list[Step] = []
    controls: dict[int, Control] = {}
    members: dict[int, Read] = {}
    for position, instruction in enumerate(entry.instructions):
        control = _control(instruction, entry, layout)
        if control is not None:
            controls[position] = control
            steps.append(_nothing)
            continue
        if instruction.name in COLLECTIVES:
            members[position] = _members(instruction, layout)
        steps.append(_step(instruction, layout))
    stops = _stops(len(steps), set(controls) | set(entry.labels.values()))
    return Program(entry, layout, steps, controls, members, stops, _granule(entry))


def _control(instruction: Instruction, entry: Entry, layout: Layout) -> Control | None:
    name, modifiers = instruction.name, instruction.modifiers
    guard = reader(instruction.guard, BOOL, layout) if instruction.guard else None
    if name == "bra":
        return Branch(_label(instruction.operands[0], entry), guard)
    if name in ("ret", "exit"):
        return Exit(guard)
    if name in ("bar", "barrier") and "warp" not in modifiers:
        return _barrier(instruction)
    return None


def _barrier(instruction: Instruction) -> Barrier:
    is_plain = set(instruction.modifiers) <= {"cta", "sync", "aligned"}
    everybody = len(instruction.operands) == 1 and getattr(instruction.operands[0], "bits", 1) == 0
    if instruction.guard is not None or not (is_plain and everybody):
        raise Unsupported(f"a barrier other than the one of the whole block: {instruction.text}")
    return Barrier(instruction.text)


def _label(operand: object, entry: Entry) -> int:
    if not isinstance(operand, Symbol) or operand.name not in entry.labels:
        raise SyntaxFault(f"{entry.name} has no label {operand}.")
    return entry.labels[operand.name]


def _step(instruction: Instruction, layout: Layout) -> Step:
    try:
        step = decoder_of(instruction)(Decoding(instruction, layout))
    except Unsupported as error:
        raise Unsupported(f"not interpreted: {instruction.text}") from error
    return step if instruction.guard is None else _guarded(step, instruction.guard, layout)


def _guarded(step: Step, guard: Register, layout: Layout) -> Step:
    read = reader(guard, BOOL, layout)

    def run(machine: Machine, mask: Mask) -> None:
        taken = read(machine.registers)
        if taken.ndim == 0:
            if taken:
                step(machine, mask)
            return
        chosen = taken if mask is None else taken & mask
        if chosen.any():
            step(machine, None if chosen.all() else chosen)

    return run


def _members(instruction: Instruction, layout: Layout) -> Read:
    """Return what reads the member mask; instructions without one need the whole warp."""
    if instruction.guard is not None:
        raise Unsupported(f"an instruction of a warp under a guard: {instruction.text}")
    named_by = COLLECTIVES[instruction.name]
    if named_by is None:
        return lambda registers: U32.type(0xFFFFFFFF)
    return reader(named_by(instruction), U32, layout)


def _stops(length: int, marks: set[int]) -> list[int]:
    stops, following = [length] * length, length
    for position in range(length - 1, -1, -1):
        stops[position] = following
        if position in marks:
            following = position
    return stops


def _granule(entry: Entry) -> int:
    sizes = [
        DTYPES[i.modifiers[-1]].itemsize
        for i in entry.instructions
        if i.name in ("ld", "st", "atom") and i.modifiers[-1] in DTYPES
    ]
    return min([4, *sizes])


def _nothing(machine: Machine, mask: Mask) -> None:
    pass
