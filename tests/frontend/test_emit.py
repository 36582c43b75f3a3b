from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from moh_deploy.errors import ExportError
from moh_deploy.frontend.emit import emit, output_types
from moh_deploy.frontend.normalize import normalize
from moh_deploy.frontend.normalize.fold import fold_constants
from moh_deploy.frontend.recognize import recognize
from moh_deploy.frontend.rewrite import commit, insert
from moh_deploy.graph.export_names import name_interface, restore_output_types
from moh_deploy.graph.load_model import add_function_bodies
from moh_deploy.ops.spec import PLUGIN_ATTRIBUTES
from tests.frontend.traced import plain_trace
from tests.nightly import one_in, sampled
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


# 20 and 21 are those of whole exports, see tests/frontend/test_export_package.py.
@sampled(2)
@pytest.mark.parametrize("opset", one_in(3, [18, 19, 22, 23]))
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
    told = r"model at frontend/traced\.py:\d+: .*eigh"  # which `eigvalsh` is taken apart into
    with pytest.raises(ExportError, match=told) as caught:
        emit(program, input_names=["x"], opset=20)
    assert "No operator set has it" in caught.value.hint
    assert capfd.readouterr().out == ""


def test_line_that_cannot_be_translated_is_named():
    class Distances(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x, x).exp()

    program = committed(Distances(), torch.zeros(2, 5, 8))
    with pytest.raises(ExportError, match=r"model at frontend/test_emit\.py:\d+: .*cdist"):
        emit(program, input_names=["x"], opset=20)


def test_exporter_is_quiet(capfd: pytest.CaptureFixture[str]):
    emit(committed(torch.sin, torch.zeros(2)), input_names=["x"], opset=20)
    assert capfd.readouterr() == ("", "")


@sampled(2)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_outputs_keep_the_dtype_of_the_program(dtype: torch.dtype):
    class Sums(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.sum(-1), x.argmax(-1)

    program = normalize(plain_trace(Sums(), torch.zeros(2, 3, dtype=dtype)))
    model = emit(program, input_names=["x"], opset=20)
    restore_output_types(model, list(output_types(program)))
    expected = ir.DataType.FLOAT16 if dtype == torch.float16 else ir.DataType.BFLOAT16
    assert [output.dtype for output in model.graph.outputs] == [expected, ir.DataType.INT64]


class Returning(nn.Module):
    """Returns something of a tensor [2, 3, 8] and of a parameter, behind written-out softmax.

    That takes `x.max()[0]`, a piece that goes with it: torch numbers those behind it anew.
    """

    def __init__(self, results: Callable[[Tensor, nn.Parameter], object]) -> None:
        super().__init__()
        self.results = results
        self.weight = nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> object:
        weights = (x - x.max(-1, keepdim=True)[0]).exp()
        return self.results(weights / weights.sum(-1, keepdim=True), self.weight)


class ReturningInputs(nn.Module):
    def forward(self, x: Tensor) -> object:
        return x, x.chunk(2, -1)[1], x


RETURNED: dict[str, nn.Module] = {
    "pieces of a chunk": Returning(lambda x, _: x.chunk(2, -1)),
    "one piece of an unbind": Returning(lambda x, _: x.unbind(1)[1]),
    "pieces of a split": Returning(lambda x, _: x.split(4, -1)),
    "a piece of a split with sizes": Returning(lambda x, _: x.split([3, 5], -1)[1]),
    "the best and their places": Returning(lambda x, _: tuple(x.topk(3, -1))),
    "in a stable order": Returning(
        lambda x, _: [
            result
            for descending in (True, False)
            for result in x.gt(0.05).float().sort(dim=1, descending=descending, stable=True)
        ]
    ),
    "the largest and its place": Returning(lambda x, _: tuple(x.max(-1))),
    "a piece cast to what it is": Returning(lambda x, _: x.chunk(2, -1)[1].to(torch.float32)),
    "a piece twice": Returning(lambda x, _: [x.chunk(2, -1)[1]] * 2),
    "pieces in a dictionary": Returning(lambda x, _: {"ends": [x.unbind(1)[0], x.unbind(1)[2]]}),
    "a result twice": Returning(lambda x, _: [x + 1] * 2),
    "a parameter twice": Returning(lambda x, weight: (weight, x + 1, weight)),
    "made of a parameter": Returning(lambda x, weight: (x + 1, weight.exp())),
    "a piece of a parameter": Returning(lambda x, weight: (x + 1, weight.chunk(2)[1])),
    "a constant": Returning(lambda x, _: (x + 1, torch.ones(3))),
    "an input twice, and a piece of it": ReturningInputs(),
}


@sampled(4)
@pytest.mark.parametrize("name", one_in(3, RETURNED))
def test_whatever_a_model_returns_is_an_output(name: str):
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    expected = tree_leaves(RETURNED[name](x))
    program = committed(RETURNED[name], x)
    fold_constants(program)
    model = emit(program, input_names=["x"], opset=20)
    name_interface(model, dims=[{}], outputs=[f"y{index}" for index in range(len(expected))])
    proto = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x.numpy()})
    assert len(found) == len(expected)
    for item, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(item), other.detach())
