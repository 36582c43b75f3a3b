"""Says what ONNX Runtime can run on."""

from __future__ import annotations

from importlib import import_module


def main() -> dict[str, object]:
    ort = import_module("onnxruntime")
    return {"version": ort.__version__, "providers": ort.get_available_providers()}
