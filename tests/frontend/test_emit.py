from __future__ import annotations

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from moh_deploy.errors import ExportError
from moh_deploy.frontend.emit import emit
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import commit, insert
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES
from moh_deploy.passes import add_function_bodies
from tests.frontend.traced import plain_trace
from tests.small_moh import build


def committed(model, *arguments: Tensor) -> torch.export.ExportedProgram:
    program = normalize(plain_trace(model, *arguments))
    return commit(program, insert(program, recognize(program)))


def test_nodes_carry_every_attribute():
    model = emit(committed(build(), torch.zeros(2, 5, 8)), input_names=["tokens"], opset=20)
    (router,) = [node for node in model.graph if node.op_type == "MoHRouter"]
    (attention,) = [node for node in model.graph if node.op_type == "MoHAttention"]
    assert {name: found.value for name, found in router.attributes.items()} == {
        "top_k": 1,
        "num_shared_heads": 2,
        "gate_mode": "weighted",
        **PLUGIN_ATTRIBUTES,
    }
    assert {name: found.value for name, found in attention.attributes.items()} == {
        "q_num_heads": 4,
        "kv_num_heads": 4,
        "scale": pytest.approx(2**-0.5),
        "is_causal": 0,
        **PLUGIN_ATTRIBUTES,
    }
    assert (router.domain, attention.domain) == ("moh", "moh")
    assert attention.inputs[3] is router.outputs[0]
    assert [value.name for value in model.graph.inputs] == ["tokens"]
    assert model.opset_imports["moh"] == 1
    assert model.opset_imports[""] == 20


# 20 and 21 are those of whole exports, see tests/test_pipeline.py.
@pytest.mark.parametrize("opset", [18, 19, 22, 23])
def test_every_opset_gives_an_equal_model(opset: int):
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    model = emit(committed(build(), x), input_names=["x"], opset=opset)
    assert model.opset_imports[""] == opset
    add_function_bodies(model, opset=opset)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    output, gates = session.run(None, {"x": x.numpy()})
    expected = build().eval()
    torch.testing.assert_close(torch.from_numpy(output), expected(x))
    torch.testing.assert_close(torch.from_numpy(gates), expected.gates(x))


def test_operator_without_a_translation_is_named(capfd: pytest.CaptureFixture[str]):
    program = committed(lambda x: torch.linalg.eigvalsh(x), torch.eye(3))
    with pytest.raises(ExportError, match=r"eigvalsh|eigh") as caught:
        emit(program, input_names=["x"], opset=20)
    assert "this was 20" in caught.value.hint
    assert capfd.readouterr().out == ""


def test_exporter_is_quiet(capfd: pytest.CaptureFixture[str]):
    emit(committed(torch.sin, torch.zeros(2)), input_names=["x"], opset=20)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_keep_the_dtype_of_the_program(dtype: torch.dtype):
    class Sums(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.sum(-1), x.argmax(-1)

    model = emit(
        normalize(plain_trace(Sums(), torch.zeros(2, 3, dtype=dtype))), input_names=["x"], opset=20
    )
    expected = ir.DataType.FLOAT16 if dtype == torch.float16 else ir.DataType.BFLOAT16
    assert [one.dtype for one in model.graph.outputs] == [expected, ir.DataType.INT64]
