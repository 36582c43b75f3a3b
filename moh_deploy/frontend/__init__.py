"""From a model in PyTorch to ONNX: everything that imports torch.

Raises:
    BackendError: A package of the extra `export` is not installed.
"""

from importlib.util import find_spec

from moh_deploy.errors import BackendError

# Asked here, once: `export` and all that loads an original model come through this module.
if _missing := [
    name for name in ("torch", "safetensors", "onnx_graphsurgeon") if not find_spec(name)
]:
    raise BackendError(
        f"not installed: {', '.join(_missing)}; exporting a model, and running the original, need"
        " PyTorch.",
        hint="pip install 'moh-deploy[export]'. Or export on another machine: the package runs"
        " here without.",
    )
