"""The kernel library in tests: the installation's, or none."""

import json
from pathlib import Path

import pytest

from moh_deploy import native
from moh_deploy.runtime.kernel_use import KernelUse

NO_KERNELS = KernelUse(None, "switched off", None)

needs_library = pytest.mark.skipif(
    native.kernel_library() is None, reason=f"no kernel library: {native.why_no_library()}"
)


def required_library() -> Path:
    """Return the installation's library, or skip the test where there is none."""
    library = native.kernel_library()
    if library is None:
        pytest.skip(f"no kernel library: {native.why_no_library()}")
    return library


def without_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the installation be one in `folder` that was built without kernels, and return that."""
    folder.mkdir(exist_ok=True)
    (folder / native.RECORD_NAME).write_text(json.dumps({"reason": "cmake was not found"}))
    monkeypatch.setattr(native, "FOLDER", folder)
    return folder
