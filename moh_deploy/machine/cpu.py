"""Look for ONNX Runtime, OpenVINO and the CPU kernels, and run one operator by each."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from moh_deploy import native
from moh_deploy.machine.ask import Failed, ask

if TYPE_CHECKING:
    from moh_deploy.package import Runtime
    from moh_deploy.runtime.kernel_use import Kernels

REBUILD = (
    "apt install cmake make g++ libonnxruntime-dev libhwy-dev (Debian 13, Ubuntu 25.04 or newer),"
    " then pip install moh-deploy again: docs/cpu-kernels.md"
)


@dataclass(frozen=True)
class RuntimeFacts:
    """The version of ONNX Runtime, and what it can run on."""

    version: str
    providers: tuple[str, ...]

    def describe(self) -> str:
        """Return the version and what it runs on."""
        return f"{self.version}: {', '.join(self.providers)}"


@dataclass(frozen=True)
class CpuRun:
    """A small MoHAttention that ran here, with the answer of its definition."""

    # What the kernels can run on, the one that ran first; empty: the function body ran.
    instruction_sets: tuple[str, ...]


@dataclass(frozen=True)
class CpuFacts:
    """The runs of an operator on the CPU: by function body, and by kernel."""

    runtime: RuntimeFacts | Failed
    functions: CpuRun | Failed
    library: Path | None  # The library with the kernels, or None
    kernels: CpuRun | Failed


def probe_cpu() -> CpuFacts:
    """Run the operator both ways, each in a process of its own."""
    library = native.kernel_library()
    return CpuFacts(
        runtime=ask(_runtime),
        # Each may crash by itself: a kernel that does leaves the function body as an answer.
        functions=ask(_attention, "off"),
        library=library,
        kernels=ask(_attention, "require") if library else Failed(native.why_no_library(), REBUILD),
    )


def _runtime() -> RuntimeFacts:
    ort = import_module("onnxruntime")
    return RuntimeFacts(ort.__version__, tuple(ort.get_available_providers()))


def _attention(kernels: Kernels, runtime: Runtime = "onnxruntime") -> CpuRun:
    # Imported here, in the other process: without ONNX Runtime the import itself fails.
    from moh_deploy.machine.attention_run import run_attention

    return CpuRun(run_attention(kernels, runtime))


_INSTALL = "pip install 'moh-deploy[openvino]'"


@dataclass(frozen=True)
class OpenVinoFacts:
    """OpenVINO, and the extension of ours."""

    release: str | Failed  # The release that is installed, such as `2026.4.1`
    extension: Path | None  # The library, or None
    # The run of a kernel in it; fails where the library is of another release.
    kernels: CpuRun | Failed


def probe_openvino() -> OpenVinoFacts:
    """Import OpenVINO, and run an operator by the extension, each in a process of its own."""
    release, extension = ask(_release), native.openvino_extension()
    if isinstance(release, Failed):
        release = Failed(f"OpenVINO is not here: {release.why}", release.fix or _INSTALL)
        return OpenVinoFacts(release, extension, release)
    if extension is None:
        compiler = "" if shutil.which("c++") or shutil.which("g++") else "apt install g++, then "
        why = f"there is no {native.OPENVINO_NAME} for OpenVINO {release}"
        return OpenVinoFacts(release, None, Failed(why, f"{compiler}{native.BUILD_OPENVINO}"))
    return OpenVinoFacts(release, extension, ask(_attention, "require", "openvino"))


def _release() -> str:
    # The name that reports give it, without the word in front.
    return str(import_module("openvino").__version__).partition("-")[0]
