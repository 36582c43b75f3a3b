"""Look for OpenVINO and the extension by which it runs the CPU kernels, and run an operator."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from moh_deploy import native
from moh_deploy.machine.ask import Failed, ask

_INSTALL = "pip install 'moh-deploy[openvino]'"


@dataclass(frozen=True)
class OpenVinoRun:
    """A small MoHAttention that ran in OpenVINO by a kernel, with the answer of its definition.

    Attributes:
        instruction_sets: What the kernels can run on, the one that ran first.
    """

    instruction_sets: tuple[str, ...]


@dataclass(frozen=True)
class OpenVinoFacts:
    """OpenVINO, and the extension of ours.

    Attributes:
        release: The release that is installed, such as `2026.4.1`.
        extension: The library; None: there is none.
        kernels: The run of a kernel in it; fails where the library is of another release.
    """

    release: str | Failed
    extension: Path | None
    kernels: OpenVinoRun | Failed


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
    return OpenVinoFacts(release, extension, ask(_attention))


def _release() -> str:
    # The name that reports give it, without the word in front.
    return str(import_module("openvino").__version__).partition("-")[0]


def _attention() -> OpenVinoRun:
    from moh_deploy.machine.attention_run import run_attention

    return OpenVinoRun(run_attention("require", "openvino"))
