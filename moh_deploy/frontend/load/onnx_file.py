"""Load an ONNX file: a module to trace, and ONNX Runtime to say what the model computes."""

from __future__ import annotations

from pathlib import Path

from moh_deploy.frontend.load.model import LoadedModel
from moh_deploy.frontend.load.onnx_graph.file import read_onnx
from moh_deploy.frontend.load.onnx_graph.module import OnnxModule
from moh_deploy.frontend.load.onnx_graph.original import OnnxOriginal
from moh_deploy.runtime.base import FUNCTION_BODIES
from moh_deploy.runtime.open_runner import onnx_file


def load_onnx(path: Path) -> LoadedModel:
    """Load an ONNX file.

    Raises:
        CheckpointError: It cannot be read.
        ExportError: It has loops, or draws random numbers.
        BackendError: ONNX Runtime does not run it: an operator's library is missing, say.
    """
    source = read_onnx(path)
    runner = onnx_file(path).open(FUNCTION_BODIES)
    module = OnnxModule(source.graph, source.opsets)
    return LoadedModel(module, None, "onnx", source.sha256, original=OnnxOriginal(source, runner))
