"""A kernel library that loads and computes wrong numbers: its constants are 5 % too large."""

import struct
from pathlib import Path

import numpy as np

from tests.kernel_library import required_library


def damaged_library() -> bytes:
    """Return the installation's library with the float constants of .rodata scaled by 1.05.

    Source: the ELF-64 specification, section headers.
    """
    content = bytearray(required_library().read_bytes())
    (table,) = struct.unpack_from("<Q", content, 0x28)
    size, count, names = struct.unpack_from("<HHH", content, 0x3A)
    headers = [
        struct.unpack_from("<IIQQQQ", content, table + size * index) for index in range(count)
    ]
    for name, _, _, _, start, length in headers:
        text = content[headers[names][4] + name :]
        if text.startswith(b".rodata\0"):
            words = np.frombuffer(content, "<f4", length // 4, start)
            # Of all words these look like numbers: offsets are far smaller or larger. Text, such
            # as the names of operators ("MoHA" would be 12.5), is printable.
            letters = words.view(np.uint8).reshape(-1, 4)
            is_text = ((letters >= 0x20) & (letters < 0x7F)).all(axis=1)
            with np.errstate(invalid="ignore"):
                numbers = (np.abs(words) > 1e-3) & (np.abs(words) < 1e3) & ~is_text
                words[numbers] *= np.float32(1.05)
            return bytes(content)
    raise AssertionError("the library has no .rodata")


def write_damaged_library(path: Path) -> Path:
    """Write it to a file."""
    path.write_bytes(damaged_library())
    return path
