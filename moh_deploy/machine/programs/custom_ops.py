"""Registers a custom-op library with ONNX Runtime."""

from __future__ import annotations

from importlib import import_module


def main(path: str) -> dict[str, object]:
    import_module("onnxruntime").SessionOptions().register_custom_ops_library(path)
    return {}
