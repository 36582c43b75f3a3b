"""The runtimes that packages and ONNX models run in, on the CPU. An engine has its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Runtime = Literal["onnxruntime", "openvino"]
"""What options, plans and manifests call it."""

RUNTIMES: Mapping[Runtime, str] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
"""Each to what reports call it; the first runs what was tuned for none."""
