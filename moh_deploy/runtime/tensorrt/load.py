"""Load the engine beside this file, or the network that it was built from, with its plugins.

`moh-deploy build` puts this file into the engine's directory. It needs TensorRT and nothing else,
and is of the form that Polygraphy takes:

    TrtRunner(InvokeFromScript("ENGINE_DIR/load.py", "load_engine"))
    polygraphy convert ENGINE_DIR/load.py -o rebuilt.engine
"""

import ctypes
import importlib
import json
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).resolve().parent


def load_engine() -> Any:
    """Return the `ICudaEngine` of this directory."""
    trt, logger = _with_plugins()
    runtime = trt.Runtime(logger)
    # An engine may hold its plugins, or the code that runs it: load only one that you trust.
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine((_FOLDER / "model.engine").read_bytes())
    if engine is None:
        raise RuntimeError(f"TensorRT cannot load {_FOLDER / 'model.engine'}.")
    return engine


def load_network() -> Any:
    """Return builder, network and parser of the lowered model."""
    model = _FOLDER / "model.onnx"
    if not model.is_file():
        raise RuntimeError(
            f"there is no {model}: build with --keep-onnx. The model.onnx of a package is for"
            " moh-deploy build to lower: TensorRT's parser does not take all of it."
        )
    trt, logger = _with_plugins()
    if trt.__name__ == "tensorrt_rtx":
        _require_plain_name()
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        raise RuntimeError(f"TensorRT's parser refuses {model}: {parser.get_error(0).desc()}")
    return builder, network, parser


def _require_plain_name() -> None:
    """Raise an error where the parser of TensorRT-RTX would end the process at the first plugin."""
    try:
        ctypes.CDLL("libtensorrt_rtx.so")
    except OSError as error:
        raise RuntimeError(
            "TensorRT-RTX's parser looks for libtensorrt_rtx.so when it meets a plugin: link it to"
            " libtensorrt_rtx.so.1, in a folder that LD_LIBRARY_PATH names."
        ) from error


def _with_plugins() -> tuple[Any, Any]:
    """Return TensorRT, whose registry knows the plugins, and a logger."""
    manifest = json.loads((_FOLDER / "engine.json").read_text(encoding="utf-8"))
    trt = importlib.import_module(manifest["backend"].replace("-", "_"))
    file = (manifest["plugin"] or {}).get("file")
    registry = trt.get_plugin_registry()
    # A registry takes a library once, and Polygraphy may call this again.
    is_known = any(creator.plugin_namespace == "moh" for creator in registry.all_creators)
    if file and not is_known and registry.load_library(str(_FOLDER / file)) is None:
        raise RuntimeError(f"TensorRT's plugin registry did not take {_FOLDER / file}.")
    return trt, trt.Logger(trt.Logger.WARNING)
