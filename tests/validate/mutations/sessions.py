"""Settings of every ONNX Runtime session that is opened, whoever opens it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import onnxruntime as ort


def session_settings(**settings: object) -> AbstractContextManager[object]:
    """Let sessions have these options, whatever their makers ask for."""

    class Options(ort.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for name, value in settings.items():
                super().__setattr__(name, value)

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in settings:
                super().__setattr__(name, value)

    return mock.patch.object(ort, "SessionOptions", Options)


def one_thread() -> AbstractContextManager[object]:
    """Let sessions compute in one thread: small models lose time by handing work over."""
    return session_settings(intra_op_num_threads=1)
