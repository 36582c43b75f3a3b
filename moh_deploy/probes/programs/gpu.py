"""Asks NVIDIA's driver what GPUs there are, without CUDA's toolkit."""

from __future__ import annotations

import ctypes

from moh_deploy.errors import BackendError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


def main() -> dict[str, object]:
    cuda = ctypes.CDLL("libcuda.so.1")
    _check(cuda, "cuInit", cuda.cuInit(0))
    version, count = ctypes.c_int(), ctypes.c_int()
    _check(cuda, "cuDriverGetVersion", cuda.cuDriverGetVersion(ctypes.byref(version)))
    _check(cuda, "cuDeviceGetCount", cuda.cuDeviceGetCount(ctypes.byref(count)))
    return {
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "gpus": [_gpu(cuda, index) for index in range(count.value)],
    }


def _gpu(cuda: ctypes.CDLL, index: int) -> list[object]:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _check(cuda, "cuDeviceGet", cuda.cuDeviceGet(ctypes.byref(device), index))
    _check(cuda, "cuDeviceGetName", cuda.cuDeviceGetName(name, len(name), device))
    _check(cuda, "cuDeviceTotalMem", cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    major, minor = (_attribute(cuda, device, which) for which in (_MAJOR, _MINOR))
    return [name.value.decode(), 10 * major + minor, memory.value]


def _attribute(cuda: ctypes.CDLL, device: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    status = cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    _check(cuda, "cuDeviceGetAttribute", status)
    return value.value


def _check(cuda: ctypes.CDLL, function: str, status: int) -> None:
    if status:
        text = ctypes.c_char_p()
        cuda.cuGetErrorName(status, ctypes.byref(text))
        name = (text.value or b"?").decode()
        raise BackendError(f"{function} of the driver failed with {name} ({status})")
