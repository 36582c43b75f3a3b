"""What may go wrong in the interpreter.

PtxError
├─ SyntaxFault     text that is not understood
├─ Unsupported     an instruction, or a form of one, that is not interpreted; with its text
├─ MemoryFault     an access outside of what was allocated, or misaligned
├─ Divergence      threads that do not meet where they have to
├─ Race            two threads of a block use the same shared memory, and nothing orders them
└─ Runaway         a kernel that does not end
"""


class PtxError(RuntimeError):
    """Base of all errors of the interpreter."""


class SyntaxFault(PtxError):
    """Text that is not understood."""


class Unsupported(PtxError):
    """An instruction, or a form of one, that is not interpreted."""


class MemoryFault(PtxError):
    """An access outside of what was allocated, or misaligned."""


class Divergence(PtxError):
    """Threads that do not meet where they have to."""


class Race(PtxError):
    """Two threads of a block use the same shared memory, and nothing orders them."""


class Runaway(PtxError):
    """A kernel that does not end."""
