"""Parse a model, and read back what the parser made of it. Runs in the worker."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from moh_deploy.runtime.tensorrt.messages import ParserError

DTYPE_NAMES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}


class ParsedNetwork:
    """A network, and what has to live as long as it does.

    Args:
        trt: The module of TensorRT or TensorRT-RTX.
        logger: The process's logger.
        builder: Makes the network.
    """

    def __init__(self, trt: Any, logger: Any, builder: Any) -> None:
        self._trt = trt
        self.network = builder.create_network(_strongly_typed(trt))
        self._parser = trt.OnnxParser(self.network, logger)

    def parse(self, path: str) -> tuple[ParserError, ...]:
        """Parse a file; return what the parser refuses."""
        if self._parser.parse_from_file(path):
            self._make_attention_decomposable()
            return ()
        return tuple(map(_error, map(self._parser.get_error, range(self._parser.num_errors))))

    def plugins(self) -> tuple[str, ...]:
        """Return the names of the nodes that became plugins."""
        return self._nodes_of("PLUGIN_V3")

    def attentions(self) -> tuple[str, ...]:
        """Return the names of the nodes that became an attention of TensorRT's own."""
        # An attention has two layers; of the first the parser does not tell the node.
        return self._nodes_of("ATTENTION_OUTPUT")

    def types(self) -> dict[str, str]:
        """Return the name of each tensor to its dtype."""
        inputs = map(self.network.get_input, range(self.network.num_inputs))
        made = (layer.get_output(i) for layer in self._layers() for i in range(layer.num_outputs))
        tensors = (tensor for group in (inputs, made) for tensor in group if tensor is not None)
        return {
            tensor.name: DTYPE_NAMES.get(tensor.dtype.name, tensor.dtype.name) for tensor in tensors
        }

    def _nodes_of(self, kind_name: str) -> tuple[str, ...]:
        # Older versions have no attention.
        kind = getattr(self._trt.LayerType, kind_name, None)
        found = (layer for layer in self._layers() if kind is not None and layer.type == kind)
        return tuple(map(_node_name, found))

    def _layers(self) -> Iterator[Any]:
        return map(self.network.get_layer, range(self.network.num_layers))

    def _make_attention_decomposable(self) -> None:
        """ONNX's Attention has kernels for half precision only: let others be made of operators."""
        kind = getattr(self._trt.LayerType, "ATTENTION_INPUT", None)
        for layer in self._layers():
            if kind is not None and layer.type == kind:
                # TensorRT's binding hands out the base class, `ILayer`: setting the class is how it
                # is cast.
                layer.__class__ = self._trt.IAttentionInputLayer
                layer.attention.decomposable = True


def _node_name(layer: Any) -> str:
    """The parser writes the node's name there; the layer's own may have a number behind it."""
    written = re.fullmatch(r"\[ONNX Layer: (.*)\]", layer.metadata)
    return written[1] if written else str(layer.name)


def _strongly_typed(trt: Any) -> int:
    """The graph says which dtypes are used. In TensorRT 10 that has to be asked for."""
    # Where there is no such flag, every network is strongly typed.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _error(error: Any) -> ParserError:
    return ParserError(_ask(error.node_name), _ask(error.node_operator), _ask(error.desc))


def _ask(read: Callable[[], Any]) -> str:
    return str(read() or "")
