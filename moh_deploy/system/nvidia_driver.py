"""Ask NVIDIA's driver about itself and the GPUs, without CUDA's toolkit."""

import ctypes
from dataclasses import dataclass

from moh_deploy.errors import BackendError

DRIVER_HINT = (
    "update the driver (580 or later takes CUDA 13, 525 or later CUDA 12), or compile the library"
    " with an older CUDA, 12.8 at least: make plugin"
)
NO_GPU = "run this on a machine with an NVIDIA GPU and its driver (`nvidia-smi` lists it there)"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """A GPU, as the driver describes it."""

    name: str
    compute_capability: int  # 86 for 8.6
    memory_bytes: int

    @property
    def dotted(self) -> str:
        """The compute capability as people write it, `8.6`."""
        return f"{self.compute_capability // 10}.{self.compute_capability % 10}"

    def __str__(self) -> str:
        return f"{self.name} ({self.dotted})"


@dataclass(frozen=True)
class Driver:
    """The driver, and what it drives."""

    cuda: str  # the largest version of CUDA that it takes
    gpus: tuple[Gpu, ...]  # at least one


def read_driver() -> Driver:
    """Ask the driver for its CUDA version and the GPUs.

    Raises:
        BackendError: The driver is missing, fails, or finds no GPU. The message is half a sentence.
    """
    cuda = load_driver()
    version, count = ctypes.c_int(), ctypes.c_int()
    check_status(cuda, "cuDriverGetVersion", cuda.cuDriverGetVersion(ctypes.byref(version)))
    check_status(cuda, "cuDeviceGetCount", cuda.cuDeviceGetCount(ctypes.byref(count)))
    if count.value == 0:
        raise BackendError("the NVIDIA driver finds no GPU")
    return Driver(
        # The driver writes 12.4 as 12040.
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
        gpus=tuple(_gpu(cuda, index) for index in range(count.value)),
    )


def takes_cuda(driver_cuda: str, needed: int) -> bool:
    """Tell whether a driver runs what was compiled with a version of CUDA.

    Args:
        driver_cuda: Version that the driver takes: `12.4`.
        needed: Major version of the other: minor ones get along.
    """
    return int(driver_cuda.partition(".")[0]) >= needed


def load_driver() -> ctypes.CDLL:
    """Return the driver's library, ready to be called. Raises as `read_driver` does."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        # Not found is the usual case; any other text of the linker is worth reading.
        missing = "cannot open shared object file: No such file" in str(error)
        why = "libcuda.so.1 was not found" if missing else str(error)
        raise BackendError(f"no NVIDIA driver: {why}") from error
    check_status(cuda, "cuInit", cuda.cuInit(0))
    return cuda


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    check_status(cuda, "cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), index))
    check_status(cuda, "cuDeviceGetName", cuda.cuDeviceGetName(name, len(name), device))
    check_status(cuda, "cuDeviceTotalMem", cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, which in ((major, _MAJOR), (minor, _MINOR)):
        status = cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        check_status(cuda, "cuDeviceGetAttribute", status)
    return Gpu(name.value.decode(), 10 * major.value + minor.value, memory.value)


def check_status(cuda: ctypes.CDLL, function: str, status: int) -> None:
    """Raise a BackendError if a call of the driver did not return 0."""
    if status:
        text = ctypes.c_char_p()
        cuda.cuGetErrorName(status, ctypes.byref(text))
        name = (text.value or b"?").decode()
        raise BackendError(f"{function} of the driver failed with {name} ({status})")
