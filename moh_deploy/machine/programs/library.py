"""Loads a native library of moh-deploy, and asks it for its version."""

from __future__ import annotations

import ctypes

from moh_deploy import __version__
from moh_deploy.errors import BackendError


def main(path: str, version_function: str) -> dict[str, object]:
    function = getattr(ctypes.CDLL(path), version_function, None)
    if function is None:
        raise BackendError(f"it is no library of moh-deploy: it has no function {version_function}")
    function.restype = ctypes.c_char_p
    version = function().decode()
    if version != __version__:
        raise BackendError(f"it belongs to moh-deploy {version}, this is {__version__}")
    return {}
