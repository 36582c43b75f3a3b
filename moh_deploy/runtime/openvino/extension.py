"""The extension by which OpenVINO runs MoH nodes on our kernels: find it, check it, add it.

The kernels themselves are those of ONNX Runtime's library. An extension that is missing is built.
Where that fails function bodies run instead, and the reason is the first line of every report.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moh_deploy import __version__, native
from moh_deploy.errors import BackendError
from moh_deploy.native.build_openvino import NotBuilt, build_openvino
from moh_deploy.package import ComputeType
from moh_deploy.runtime.base import Variant
from moh_deploy.runtime.kernel_use import KernelUse, choose_kernels, library_function

if TYPE_CHECKING:
    import openvino as ov

_BUILD_KERNELS = "Install moh-deploy again, or build it: python tools/build_kernels.py."
_BUILD = f"Build it for this OpenVINO: {native.BUILD_OPENVINO}. --kernels off runs without."
_INSTALL = "Install it: pip install 'moh-deploy[openvino]'."

# What an extension runs on is said before it is added, in the process: one at a time.
_CHOOSING = threading.Lock()
_BUILDING = threading.Lock()


def import_openvino() -> None:
    """Import OpenVINO, or explain its absence.

    Raises:
        BackendError: It is not installed, or does not load.
    """
    try:
        import openvino
    except ImportError as error:
        raise BackendError(f"OpenVINO cannot be loaded: {error}.", hint=_INSTALL) from error
    assert openvino


def openvino_name() -> str:
    """Return `OpenVINO 2026.4.1`, the release that runs here; raises as `import_openvino` does."""
    import_openvino()
    return f"OpenVINO {_release()}"


def _release() -> str:
    import openvino as ov

    # `2026.4.1-22982-0a1b...`: what follows the first dash names a build.
    return str(ov.__version__).partition("-")[0]


@dataclass(frozen=True)
class Extension:
    """The extension, loaded and checked, and the kernels that it is to run on."""

    path: Path  # the library
    kernels: KernelUse  # what reports say of the kernels
    _library: ctypes.CDLL

    def add_to(self, core: ov.Core, domains: Iterable[str]) -> None:
        """Let models that are read run their nodes of these domains on our kernels."""
        assert self.kernels.library is not None, "an extension without kernels"
        # Loaded for good: ops of compiled models point into it.
        owner = ctypes.CDLL(str(self.kernels.library))
        find = _function(owner, "moh_cpu_kernels", self.kernels.library, _BUILD_KERNELS)
        find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
        set_ = find(str(self.kernels.instruction_set).encode())
        rounds = self.kernels.compute_type == "bfloat16"
        choose = self._library.moh_openvino_choose
        choose.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p]
        with _CHOOSING:
            choose(set_, int(rounds), ",".join(sorted(domains)).encode())
            core.add_extension(str(self.path))

    def failures(self) -> int:
        """Return how many ops have failed in this process so far: OpenVINO does not say."""
        return int(self._library.moh_openvino_failures())

    def last_failure(self) -> str:
        """Return why the last one did."""
        text = ctypes.create_string_buffer(2048)
        self._library.moh_openvino_last_failure(text, ctypes.c_size_t(len(text)))
        return text.value.decode(errors="replace")


def choose_extension(
    variant: Variant, compute_type: ComputeType
) -> tuple[Extension | None, KernelUse]:
    """Decide whether MoH nodes run on kernels, and on which.

    Args:
        variant: In which way the model is opened.
        compute_type: What the package allows the matrix products to take.

    Returns:
        The extension, or None if function bodies run; and what reports say of the kernels.

    Raises:
        ConfigError: `kernels` or the instruction set is unknown.
        BackendError: Kernels are required and missing, or the extension that is there is of
            another OpenVINO or another version of ours.
    """
    import_openvino()
    use = choose_kernels(
        variant.kernels,
        library=variant.library,
        instruction_set=variant.instruction_set,
        compute_type=variant.compute_type or compute_type,
    )
    if use.library is None:
        return None, use
    path = native.openvino_extension()
    if path is None:
        with _BUILDING:
            reason = _why_not_built(native.FOLDER)
        path = native.openvino_extension()
        if path is None and variant.kernels == "require":
            raise BackendError(f"kernels are required, but {reason}.", hint=_BUILD)
        if path is None:
            return None, replace(use, library=None, reason=reason, instruction_set=None)
    return Extension(path, use, _load(path)), use


@cache  # a compiler that fails takes seconds, and a command opens many models
def _why_not_built(folder: Path) -> str:
    """Build the extension into a folder; return the reason if that fails."""
    name = f"{native.OPENVINO_NAME}, by which {openvino_name()} runs kernels"
    try:
        build_openvino(folder)
    except NotBuilt as failure:
        # The first line: behind it stands the compiler's output, which the command shows.
        first, *more = str(failure).splitlines()
        shown = f"{first.rstrip(':')}; {native.BUILD_OPENVINO} shows its output" if more else first
        return f"there is no {name}, and it cannot be built: {shown}"
    return f"{name}, was built and is gone again"


def _load(path: Path) -> ctypes.CDLL:
    # By ctypes, and after OpenVINO itself, whose libraries it then finds loaded. Those of another
    # release have other names; had they the same, a mismatch would end the process.
    import_openvino()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(
            f"{path} does not load into {openvino_name()}: {error}."
            " It was built for another release.",
            hint=_BUILD,
        ) from error
    for function, of_what, here in (
        ("moh_openvino_version", "moh-deploy", __version__),
        ("moh_openvino_release", "OpenVINO", _release()),
    ):
        text = _function(library, function, path, f"Build it again: {native.BUILD_OPENVINO}.")
        text.restype = ctypes.c_char_p
        built = text().decode()
        if built != here:
            raise BackendError(
                f"{path} was built for {of_what} {built}, this is {of_what} {here}.", hint=_BUILD
            )
    library.moh_openvino_failures.restype = ctypes.c_int64
    return library


def _function(library: ctypes.CDLL, name: str, path: Path, hint: str) -> Any:
    none_of_ours = f"{path} is not of moh-deploy {__version__}"
    return library_function(library, name, none_of_ours, hint)
