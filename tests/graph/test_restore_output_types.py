from __future__ import annotations

import onnx_ir as ir
from onnx import parser

from moh_deploy.graph.export_names import restore_output_types

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


def model(body: str, outputs: str) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float16[2, 3] x) => ({outputs}) <float[2, 3] wide, float[2] sum> {{
            wide = Cast <to = 1> (x)
            {body}
        }}"""
    return ir.from_proto(parser.parse_model(text))


def test_an_output_is_rounded_to_the_dtype_of_the_program():
    made = model("sum = ReduceSum <keepdims = 0> (wide)", "float[2] sum")
    restore_output_types(made, [HALF])
    (output,) = made.graph.outputs
    producer = output.producer()
    assert (output.dtype, producer.op_type, producer.inputs[0].name) == (HALF, "Cast", "sum")


def test_the_cast_that_others_read_is_taken():
    body = "sum = ReduceSum <keepdims = 0> (wide) low = Cast <to = 10> (sum) y = Neg (low)"
    made = model(body, "float[2] sum, float16[2] y")
    restore_output_types(made, [HALF, HALF])
    assert [one.name for one in made.graph.outputs] == ["low", "y"]
    assert len(made.graph) == 4


def test_an_output_of_the_right_dtype_stays():
    made = model("sum = ReduceSum <keepdims = 0> (wide)", "float[2] sum")
    restore_output_types(made, [FLOAT])
    assert [one.name for one in made.graph.outputs] == ["sum"]
