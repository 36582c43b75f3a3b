"""The kernel library in an ONNX Runtime session: find it, check it, register it.

A library that is there but cannot be used is an error. Only where there is none do function bodies
run instead, and the reason for that goes into every report.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from moh_deploy import __version__, native
from moh_deploy.errors import BackendError, ConfigError
from moh_deploy.package import ComputeType
from moh_deploy.runtime.kernel_use import Kernels, KernelUse
from moh_deploy.runtime.layer_runs import LayerImpl
from moh_deploy.system.suggest import did_you_mean

if TYPE_CHECKING:
    import onnxruntime as ort

_REINSTALL = "Install moh-deploy again, or run without the library: --kernels off."
_COPY_AGAIN = "Copy it again from where it was whole, or write the bundle again."


def choose_kernels(
    kernels: Kernels,
    *,
    library: Path | None = None,
    instruction_set: str | None = None,
    compute_type: ComputeType = "float32",
) -> KernelUse:
    """Decide which library a session is to use, and how.

    Args:
        kernels: `auto` takes the library if there is one, `off` none, `require` wants one.
        library: Another one than the installation's.
        instruction_set: One of those that the library offers here; None for the best.
        compute_type: What the package allows the matrix products to take.

    Raises:
        ConfigError: `kernels` is none of the three, or the instruction set is not to be had.
        BackendError: A library is required and there is none, or the one that is there cannot be
            loaded or is of another version.
    """
    if kernels not in ("auto", "off", "require"):
        raise ConfigError(f"kernels is '{kernels}', expected auto, off or require.")
    if kernels == "off":
        return KernelUse(None, "switched off", None, compute_type)
    # A library that was named and cannot be loaded fails below: falling back would hide it.
    path = library or native.kernel_library()
    if path is None and kernels == "auto":
        return KernelUse(None, native.why_no_library(), None, compute_type)
    if path is None:
        raise BackendError(
            f"kernels are required, but there is no kernel library: {native.why_no_library()}.",
            hint="docs/cpu-kernels.md says what to install. --kernels auto runs function bodies in"
            " standard ONNX ops where there is no kernel.",
        )
    # Loaded by ctypes first: a library of another version would be refused by ONNX Runtime with no
    # word of that, or not at all.
    usable = instruction_sets(path)
    if instruction_set and instruction_set not in usable:
        raise ConfigError(
            f"instruction set '{instruction_set}' cannot be used here, only {', '.join(usable)}.",
            hint=did_you_mean(instruction_set, usable) or None,
        )
    return KernelUse(path, None, instruction_set or usable[0], compute_type)


def register(use: KernelUse, options: ort.SessionOptions, domains: Iterable[str] = ()) -> None:
    """Give the library to a session that is still to be made.

    Args:
        domains: Those in which the model has nodes that are to run on kernels; none for the eight
            that the library expects.

    Raises:
        BackendError: The library or this ONNX Runtime refuses, with the reason.
    """
    if use.library is None:
        return
    # The library reads these when it is registered.
    options.add_session_config_entry("moh.instruction_set", str(use.instruction_set))
    options.add_session_config_entry("moh.compute_type", use.compute_type)
    if named := ",".join(sorted(domains)):
        options.add_session_config_entry("moh.domains", named)
    try:
        options.register_custom_ops_library(str(use.library))
    except Exception as error:  # ONNX Runtime's exceptions have no common base class but this.
        import onnxruntime as ort

        raise BackendError(
            f"{use.library} cannot be registered with ONNX Runtime {ort.__version__}: {error}",
            hint=_REINSTALL,
        ) from error


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
        BackendError: It cannot be loaded, is none of ours, or of another version.
    """
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise BackendError(
            f"the kernel library {path} cannot be loaded: {error}.", hint=_again(path)
        ) from error
    # Library and Python share the meaning of attributes, which may change with any version.
    version = _text(library, "moh_cpu_version", path)
    if version != __version__:
        raise BackendError(
            f"the kernel library {path} is of version {version}, moh-deploy of {__version__}.",
            hint=_again(path),
        )
    return _text(library, "moh_cpu_instruction_sets", path).split(",")


def _again(path: Path) -> str:
    return _REINSTALL if path == native.kernel_library() else _COPY_AGAIN


def _text(library: ctypes.CDLL, name: str, path: Path) -> str:
    """Call a function of the library that takes nothing and returns text."""
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise BackendError(
            f"{path} is no kernel library of moh-deploy: it has no function {name}."
        ) from error
    function.restype = ctypes.c_char_p
    text: bytes = function()
    return text.decode()
