import numpy as np
import onnx_ir as ir
from onnx import numpy_helper, parser

from moh_deploy.runtime.onnxruntime.quantizer import quantize_products


def test_gemm_that_stays_in_float32_keeps_its_name():
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> two (float[rows, 4] x) =>'
        " (float[rows, 4] y, float[rows, 4] z) {"
        " [taken] y = Gemm (x, W, bias) [router] z = Gemm <transB = 1> (x, V, bias) }"
    )
    rng = np.random.default_rng(0)
    stored = {
        "W": rng.standard_normal((4, 4)),
        "V": rng.standard_normal((4, 4)),
        "bias": np.ones(4),
    }
    proto.graph.initializer.extend(
        numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()
    )
    made = quantize_products(ir.serde.deserialize_model(proto), ["taken"])
    assert [node.name for node in made.graph if node.op_type in ("Gemm", "MatMul")] == ["router"]
    assert [node.op_type for node in made.graph].count("MatMulInteger") == 1
