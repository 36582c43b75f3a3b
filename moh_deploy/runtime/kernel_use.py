"""Say which kernels a model is to run on, and which it ran on."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moh_deploy import __version__, native
from moh_deploy.config.dtypes import ComputeType
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.report.report import HIDDEN, in_json
from moh_deploy.system.suggest import did_you_mean

if TYPE_CHECKING:
    from moh_deploy.runtime.layer_runs import LayerImpl

Kernels = Literal["auto", "off", "require"]

BFLOAT16_SETS = ("amx_bf16", "avx512_bf16")
"""The instruction sets with a matrix product of bfloat16 operands."""

_OFF = "switched off"


@dataclass(frozen=True)
class KernelUse:
    """The kernel library that a session uses, or why none, and in which arithmetic it computes.

    Which nodes run on the library is in `Description.layer_impl`.
    """

    # Path of the library, whose name reports show; None without kernels.
    library: Path | None
    reason: str | None  # why it is missing, or None
    # What the kernels run on, such as `avx2`; None without a library, and of one for GPUs, whose
    # products take what the graph says.
    instruction_set: str | None
    # Operands of the matrix products that the package allows.
    asked_compute_type: ComputeType = "float32"
    # The dtype that the runtime has no kernels for, so that every operator in it computes in
    # float32 and its results are rounded; or None.
    emulated_dtype: str | None = None
    # Operators of the model that the library has no kernel for, such as `moh::MoHTokenConv`: their
    # nodes run as function bodies. Those that run so by choice are not among them.
    no_kernel_for: tuple[str, ...] = field(default=(), metadata=HIDDEN)
    # How many MoH nodes of the model run as function bodies.
    num_bodies: int = field(default=0, metadata=HIDDEN)

    @property
    @in_json("library")
    def _library_name(self) -> str | None:
        # Reports are handed on, and where software lies on this machine is its user's matter.
        return None if self.library is None else self.library.name

    @property
    @in_json("no_kernel_for")
    def _without_kernel(self) -> str | None:
        return ", ".join(self.no_kernel_for) or None

    @property
    @in_json()
    def compute_type(self) -> ComputeType:
        """The operands that the matrix products of attention take, accumulated in float32."""
        # The package allows bfloat16, it does not ask for it: without such a product in hardware,
        # emulating one would be slower and less precise than float32.
        return self.asked_compute_type if self.instruction_set in BFLOAT16_SETS else "float32"

    @property
    def warning(self) -> str:
        """The first line of reports where function bodies ran unasked; else empty."""
        if self.library is not None or self.reason == _OFF or not self.num_bodies:
            return ""
        return f"Function bodies ran, which compute every head and take longer: {self.reason}."

    def describe(self) -> str:
        """Return the line that reports show."""
        if self.emulated_dtype is None:
            return self._library_text()
        return (
            f"{self._library_text()}\n{self.emulated_dtype} is emulated, since the runtime has no"
            " kernels for it: operators compute in float32, and every result is rounded"
        )

    def _library_text(self) -> str:
        if self.library is None:
            return f"kernels: none ({self.reason})"
        text = f"kernels: {self._library_name}"
        if self.instruction_set is not None:
            text = f"{text}, {self.instruction_set}, products of {self.compute_type}"
        if self.instruction_set is not None and self.compute_type != self.asked_compute_type:
            asked = self.asked_compute_type
            able = " and ".join(BFLOAT16_SETS)
            text = f"{text} (the package allows {asked}, which {able} alone have)"
        if self.no_kernel_for:
            text = f"{text}; it has no kernel for {', '.join(self.no_kernel_for)}"
        return text


# The kernel library: find it, check it.
#
# A library that is there but cannot be used is an error. Only where it is missing do function
# bodies run instead, and the reason for that goes into every report.

REINSTALL = "Install moh-deploy again, or run without the library: --kernels off."
_NO_CUDA_LIBRARY = (
    f"moh_deploy/native has no {native.ORT_CUDA_NAME}; `{native.BUILD_ORT_CUDA}` in the sources of"
    " moh-deploy builds it, by nvcc and without a GPU"
)
_COPY_AGAIN = "Copy it again from where it was whole, or write the bundle again."


def choose_kernels(
    kernels: Kernels,
    *,
    library: Path | None = None,
    instruction_set: str | None = None,
    compute_type: ComputeType = "float32",
    on_gpu: bool = False,
) -> KernelUse:
    """Decide which library a session is to use, and how.

    Args:
        kernels: `auto` takes the library if there is one, `off` none, `require` wants one.
        library: Another one than the installation's.
        instruction_set: One of those that the library offers here; None for the best.
        compute_type: What the package allows the matrix products to take.
        on_gpu: The session computes on ONNX Runtime's CUDA provider, whose library is another one.

    Raises:
        ConfigError: `kernels` is another word, or the instruction set is missing.
        BackendError: A library is required and missing, or the one that is there cannot be
            loaded or is of another version.
    """
    if kernels not in ("auto", "off", "require"):
        raise ConfigError(f"kernels is '{kernels}', expected auto, off or require.")
    if kernels == "off":
        return KernelUse(None, _OFF, None, compute_type)
    # A library that was named and cannot be loaded fails below: falling back would hide it.
    path = library or (native.cuda_library() if on_gpu else native.kernel_library())
    if path is None:
        why = _NO_CUDA_LIBRARY if on_gpu else native.why_no_library()
        if kernels == "auto":
            return KernelUse(None, why, None, compute_type)
        page = "cuda" if on_gpu else "cpu-kernels"
        raise BackendError(
            f"kernels are required, but there is no kernel library: {why}.",
            hint=f"`moh-deploy help {page}` says what to install. --kernels auto runs function"
            " bodies in standard ONNX ops where there is no kernel.",
        )
    if on_gpu:
        _loaded(path, "moh_ort_cuda_version")
        return KernelUse(path, None, None, compute_type)
    # Loaded by ctypes first: a library of another version would be refused by ONNX Runtime with no
    # word of that, or not at all.
    usable = instruction_sets(path)
    if instruction_set and instruction_set not in usable:
        raise ConfigError(
            f"instruction set '{instruction_set}' cannot be used here, only {', '.join(usable)}.",
            hint=did_you_mean(instruction_set, usable) or None,
        )
    return KernelUse(path, None, instruction_set or usable[0], compute_type)


def require_kernels(use: KernelUse, layer_impl: Mapping[str, LayerImpl]) -> None:
    """Refuse a session that runs a MoH node as its function body.

    Raises:
        BackendError: Naming the nodes, and why they do.
    """
    bodies = [node for node, impl in layer_impl.items() if impl == "function"]
    if bodies:
        raise BackendError(
            f"kernels are required, but {len(bodies)} of {len(layer_impl)} MoH nodes run as their"
            f" function bodies, as read from the session: {', '.join(bodies)}. The library"
            f" {use.library} has no kernel for {', '.join(use.no_kernel_for)}.",
            hint="--kernels auto runs function bodies where there is no kernel.",
        )


def instruction_sets(path: Path) -> list[str]:
    """Return the instruction sets that a library can use on this machine, best first.

    Raises:
        BackendError: It cannot be loaded, is not ours, or of another version.
    """
    library = _loaded(path, "moh_cpu_version")
    return _asked_text(library, "moh_cpu_instruction_sets", path).split(",")


def _loaded(path: Path, version_function: str) -> ctypes.CDLL:
    """Load a library of this version; raises as `instruction_sets` does."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(
            f"the kernel library {path} cannot be loaded: {error}.", hint=_again(path)
        ) from error
    # Library and Python share the meaning of attributes, which may change with any version.
    version = _asked_text(library, version_function, path)
    if version != __version__:
        raise BackendError(
            f"the kernel library {path} is of version {version}, moh-deploy of {__version__}.",
            hint=_again(path),
        )
    return library


def _again(path: Path) -> str:
    if path == native.cuda_library():
        return f"Build it again: {native.BUILD_ORT_CUDA}. --kernels off runs without."
    return REINSTALL if path == native.kernel_library() else _COPY_AGAIN


def _asked_text(library: ctypes.CDLL, name: str, path: Path) -> str:
    found = library_function(library, name, f"{path} is no kernel library of moh-deploy")
    found.restype = ctypes.c_char_p
    text: bytes = found()
    return text.decode()


def library_function(
    library: ctypes.CDLL, name: str, otherwise: str, hint: str | None = None
) -> Any:
    """Return a function of a library.

    Args:
        otherwise: What is said of a library that does not have it.

    Raises:
        BackendError: It does not.
    """
    try:
        return getattr(library, name)
    except AttributeError as error:
        raise BackendError(f"{otherwise}: it has no function {name}.", hint=hint) from error
