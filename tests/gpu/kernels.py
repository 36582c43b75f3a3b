"""The library of kernels: what it refuses becomes an exception."""

import ctypes
from functools import cached_property
from pathlib import Path

from tests.cuda import abi
from tests.gpu.device import Device
from tests.gpu.stored_cases import StoredCases


class Refused(Exception):
    """A call's status was not kOk: the text is the library's own."""


class Library:
    """A built library, or one that was brought along.

    Raises:
        RuntimeError: Its structs are not those that these tests know: other sources.
    """

    def __init__(self, path: Path) -> None:
        self.functions = ctypes.CDLL(str(path))
        abi.declare(self.functions)
        differing = sorted(set(self._layout().items()) ^ set(abi.layout().items()))
        if differing:
            names = sorted({name for name, _ in differing})
            raise RuntimeError(
                f"{path} was built from other sources than these: its {', '.join(names)} differ."
                " Build it again, or leave --library out."
            )

    def call(self, name: str, *arguments: object) -> None:
        """Call a function that returns a status."""
        status = getattr(self.functions, name)(*arguments)
        if status:
            text = self.functions.moh_cuda_last_error().decode()
            raise Refused(f"{name}: {abi.STATUSES[status]}: {text}")

    def device(self) -> abi.Device:
        """Return what choices depend on."""
        device = abi.Device()
        self.call("moh_cuda_device", ctypes.byref(device))
        return device

    def _layout(self) -> dict[str, int]:
        lines = self.functions.moh_cuda_layout().decode().splitlines()
        return {name: int(number) for name, number in map(str.split, lines)}


class Bench:
    """What jobs work with: a device, the library, the stored cases; each is loaded when needed.

    Attributes:
        library_path: Set before each job.
    """

    def __init__(self, device: Device, cases: Path) -> None:
        self.device = device
        self.library_path: Path | None = None
        self._cases = cases

    @cached_property
    def library(self) -> Library:
        assert self.library_path is not None
        return Library(self.library_path)

    @cached_property
    def cases(self) -> StoredCases:
        return StoredCases(self._cases)
