"""Find libmoh_plugin.so, the kernels for TensorRT, and check that it is of this version."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from moh_deploy import __version__, native
from moh_deploy.errors import BackendError
from moh_deploy.system.digest import sha256_of

PLUGIN_NAME = "libmoh_plugin.so"
HOW_TO_BUILD = (
    "Build it with `make plugin` (nvcc and TensorRT's headers are needed, no GPU), or name it with"
    " --plugin FILE."
)


@dataclass(frozen=True)
class PluginLibrary:
    """A library of this version of moh-deploy.

    Attributes:
        path: Where it is.
        sha256: Digest of its content.
        cuda: Major version of CUDA that a driver has to take.
    """

    path: Path
    sha256: str
    cuda: int


def find_plugin(given: Path | None) -> PluginLibrary | None:
    """Return the library that is named, else the installed one, else None.

    Raises:
        BackendError: There is no such file, or it is not a library of this version.
    """
    path = given or native.FOLDER / PLUGIN_NAME
    # Nothing installed is no error: layers then run their functions. What was named has to be
    # there.
    if given is None and not os.path.isfile(path):
        return None
    if not os.path.isfile(path):
        raise BackendError(f"plugin is {path}: there is no such file.", hint=HOW_TO_BUILD)
    return PluginLibrary(path.resolve(), sha256_of(path), _checked_version(path))


def _checked_version(path: Path) -> int:
    """Return the version of CUDA that a library needs, of this version of moh-deploy."""
    try:
        # Resolved: without a slash the linker would search its own paths for the name.
        library = ctypes.CDLL(str(path.resolve()))
        function, cuda = library.moh_plugin_version, library.moh_plugin_cuda
    except (OSError, AttributeError) as error:
        raise BackendError(
            f"{path} is not a plugin library of moh-deploy: {error}.", hint=HOW_TO_BUILD
        ) from error
    function.restype = ctypes.c_char_p
    found = function().decode()
    if found != __version__:
        raise BackendError(
            f"{path} belongs to moh-deploy {found}, this is {__version__}.", hint=HOW_TO_BUILD
        )
    return int(cuda())
