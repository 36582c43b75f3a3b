"""Counts instructions in the machine code of our kernels, which ptxas writes as an ELF file.

An instruction of every GPU since sm_70 has 16 bytes, the lowest 12 bits of which say what it is.
NVIDIA does not document them: these are what cuobjdump shows as HMMA and LDSM, for each of the
architectures that the library is compiled for.
"""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HMMA, LDSM = 0x23C, 0x83B


@dataclass(frozen=True)
class MatrixInstructions:
    """Of a kernel, all of them in its loop over keys.

    Attributes:
        products: HMMA, a product of tiles on tensor cores.
        loads: LDSM, of four 8x8 matrices from shared memory.
    """

    products: int
    loads: int

    @property
    def loads_per_64_products(self) -> float:
        return 64 * self.loads / self.products


def matrix_instructions(machine_code: Path) -> dict[str, MatrixInstructions]:
    """Return what each kernel has, by its mangled name."""
    counts = {name: _opcodes(code) for name, code in _kernels(machine_code.read_bytes())}
    return {name: MatrixInstructions(n[HMMA], n[LDSM]) for name, n in counts.items()}


def _kernels(elf: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield name and code of each section `.text.KERNEL` of an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    # Of a section: name, type, flags, address, offset, size, ...
    sections = [struct.unpack_from("<IIQQQQ", elf, table + n * size) for n in range(count)]
    texts = sections[names][4]
    for name, _, _, _, offset, length in sections:
        start = texts + name
        label = elf[start : elf.index(b"\0", start)].decode()
        if label.startswith(".text."):
            yield label.removeprefix(".text."), elf[offset : offset + length]


def _opcodes(code: bytes) -> Counter[int]:
    return Counter(word & 0xFFF for word, _ in struct.iter_unpack("<QQ", code))
