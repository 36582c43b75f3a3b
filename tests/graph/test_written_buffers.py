import pytest
from onnx import parser

from moh_deploy.runtime.prepared_model import written_buffers

TYPES = "float[b, 2, n, 4] past, float[b, 2, s, 4] new, int64[b] at) => (float[b, 2, n, 4] present"


def graph(body: str):
    text = f'<ir_version: 10, opset_import: ["" : 24]> g ({TYPES}) {{ {body} }}'
    return parser.parse_model(text).graph


def test_output_that_is_written_into_an_input_is_found():
    found = written_buffers(graph("present = TensorScatter <axis = 2> (past, new, at)"))
    assert found == {"present": "past"}


@pytest.mark.parametrize(
    "body",
    [
        # Another memory than the input's, or none that goes out.
        "copy = Identity (past) present = TensorScatter <axis = 2> (copy, new, at)",
        "inner = TensorScatter <axis = 2> (past, new, at) present = Identity (inner)",
        "present = Concat <axis = 2> (past, new)",
    ],
)
def test_other_outputs_are_not(body: str):
    assert written_buffers(graph(body)) == {}
