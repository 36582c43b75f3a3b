"""Load a model as a program does that knows ONNX Runtime alone: does that end the process?"""

from __future__ import annotations

import os
from pathlib import Path

from moh_deploy.runtime.onnxruntime.session import TRANSPOSE_FUSION, runtime_name
from moh_deploy.system.isolate import isolated


def crash_of_plain_session(path: Path) -> str | None:
    """Say how a plain session of a float16 model ends its process; None if it does not."""
    found = isolated(_load, path)
    # A refusal is an error that such a program sees; a signal is none.
    if found.return_code is None or found.return_code >= 0:
        return None
    return (
        f"A plain session of {runtime_name()} ends its process with {found.how()} on {path.name}:"
        f" set {TRANSPOSE_FUSION[0]} of it to {TRANSPOSE_FUSION[1]}, as moh-deploy does."
    )


def _load(path: Path) -> bool:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    return True
