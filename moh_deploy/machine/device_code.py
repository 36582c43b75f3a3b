"""Tell which GPUs a library has code for, from the file: nvcc embeds it in "fat binaries".

A fat binary is a header and entries, each a header and the code for one architecture.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes after it
_ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, bytes of this header, of the code, arch
_MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, _HEADER.size)
# Kinds of entries. PTX is compiled by the driver as it is loaded, machine code runs as it is.
_PTX, _MACHINE_CODE = 1, 2


@dataclass(frozen=True)
class DeviceCode:
    """The GPUs that a library has code for.

    Attributes:
        machine: Compute capabilities that it has machine code for: 86 for 8.6.
        ptx: Those that it has PTX for, which later ones run, too.
    """

    machine: tuple[int, ...]
    ptx: tuple[int, ...]

    def __str__(self) -> str:
        """Return `8.0, 8.6 and, by PTX, 12.0 and later`."""
        machine = ", ".join(f"{number // 10}.{number % 10}" for number in self.machine)
        ptx = ", ".join(f"{number // 10}.{number % 10} and later" for number in self.ptx)
        return " and, by PTX, ".join(filter(None, [machine, ptx])) or "no GPU"

    def runs_on(self, compute_capability: int) -> bool:
        """Tell whether a GPU runs it: machine code is for its major version and what it has."""
        same_major = (number for number in self.machine if number // 10 == compute_capability // 10)
        return min(same_major, default=compute_capability + 1) <= compute_capability or any(
            number <= compute_capability for number in self.ptx
        )


def device_code(library: Path) -> DeviceCode:
    """Read a library; one without code for GPUs has none."""
    entries = set(_entries(library.read_bytes()))
    return DeviceCode(
        machine=tuple(sorted(arch for kind, arch in entries if kind == _MACHINE_CODE)),
        ptx=tuple(sorted(arch for kind, arch in entries if kind == _PTX)),
    )


def _entries(content: bytes) -> Iterator[tuple[int, int]]:
    """Return kind and architecture of every entry."""
    # Searched for in the whole file, which may hold one for each object that it was linked from.
    at = content.find(_MAGIC)
    while at >= 0:
        *_, size = _HEADER.unpack_from(content, at)
        # No further than the file: a header may claim anything.
        place, end = at + _HEADER.size, min(at + _HEADER.size + size, len(content) - _ENTRY.size)
        while place < end:
            kind, _, header_bytes, code_bytes, arch = _ENTRY.unpack_from(content, place)
            yield kind, arch
            # Always forward, even where an entry says that it is empty.
            place += max(header_bytes + code_bytes, _ENTRY.size)
        at = content.find(_MAGIC, at + 1)
