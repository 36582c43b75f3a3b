"""Small ONNX models for tests: of one operator, or from a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

Array = np.ndarray


@dataclass(frozen=True)
class Case:
    """One node, and the arrays that it is given.

    Attributes:
        inputs: In the order of the operator; None is left out.
        constants: Places of the inputs that are weights of the model: axes, shapes.
    """

    op_type: str
    inputs: Sequence[Array | None]
    attributes: Mapping[str, object] = field(default_factory=dict)
    constants: Sequence[int] = ()
    outputs: int = 1
    domain: str = ""
    opset: int = 20
    name: str = ""

    @property
    def label(self) -> str:
        return " ".join(filter(None, [self.op_type, self.domain, self.name, str(self.opset)]))

    def model(self) -> onnx.ModelProto:
        names = [f"x{place}" if x is not None else "" for place, x in enumerate(self.inputs)]
        outputs = [f"y{place}" for place in range(self.outputs)]
        node = helper.make_node(
            self.op_type, names, outputs, "the_node", domain=self.domain, **self.attributes
        )
        given = {n: x for n, x in zip(names, self.inputs, strict=True) if x is not None}
        stored = {names[place] for place in self.constants}
        graph = helper.make_graph(
            [node],
            "g",
            [_declared(name, x) for name, x in given.items() if name not in stored],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [numpy_helper.from_array(given[name], name) for name in sorted(stored)],
        )
        return finished(graph, self.opset)

    @property
    def fed(self) -> dict[str, Array]:
        return {
            f"x{place}": x
            for place, x in enumerate(self.inputs)
            if x is not None and place not in self.constants
        }


def _declared(name: str, array: Array) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, dtype, array.shape)


def finished(graph: onnx.GraphProto, opset: int = 20) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def written(text: str, path: Path, opset: int = 20) -> Path:
    """Write the model of a graph in onnx.parser's text: `g (float[N] x) => (float[N] y) {...}`."""
    imports = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    onnx.save(parser.parse_model(f"{imports} {text}"), path)
    return path
