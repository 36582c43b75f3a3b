"""Python packages and native libraries that are not what they should be, made for one test."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

_DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int* version) { *version = 13010; return 0; }
int cuDeviceGetCount(int* count) { *count = COUNT; return 0; }
int cuDeviceGet(int* device, int index) { *device = 10 + index; return 0; }
int cuDeviceGetName(char* name, int size, int device) {
  strncpy(name, device == 10 ? "NVIDIA L4" : "NVIDIA B200", size); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = 24000000000ull; return 0; }
int cuDeviceGetAttribute(int* value, int which, int device) {
  *value = which == 75 ? (device == 10 ? 8 : 10) : which == 76 ? (device == 10 ? 9 : 0) : -1;
  return 0; }
int cuGetErrorName(int status, const char** name) { *name = "CUDA_ERROR_NO_DEVICE"; return 0; }
"""


@dataclass
class Fakes:
    """A folder at the front of Python's path, here and in new processes."""

    folder: Path

    def module(self, name: str, code: str) -> None:
        (self.folder / f"{name}.py").write_text(code)

    def installed(self, name: str, version: str, requires: list[str] | None = None) -> None:
        """Let a package count as installed."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {item}\n" for item in requires or [])
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(head + needs)

    def library(self, name: str, code: str) -> Path:
        """Compile a shared library of C."""
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler")
        source, library = self.folder / f"{name.replace('.', '_')}.c", self.folder / name
        source.write_text(code)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        return library

    def driver(self, *, status: int = 0, count: int = 2) -> None:
        """Let there be a driver of NVIDIA's, for new processes.

        Args:
            status: What cuInit returns.
            count: How many GPUs: an L4 (8.9), then a B200 (10.0).
        """
        code = _DRIVER.replace("INIT", str(status)).replace("COUNT", str(count))
        self.library("libcuda.so.1", code)

    def program(self, name: str, script: str) -> None:
        """Put a shell script in the folder, which PATH begins with."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    folder = tmp_path / "fakes"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    monkeypatch.setenv("PATH", str(folder) + os.pathsep + os.environ["PATH"])
    return Fakes(folder)
