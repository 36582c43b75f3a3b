"""The torch operators become the very ONNX nodes that the contract tests."""

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from moh_deploy.frontend.emit import emit
from moh_deploy.frontend.torch_ops import OPERATORS
from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.onnx_schema import single_node_model
from tests.frontend.test_torch_ops import arguments
from tests.nightly import first_of_each
from tests.ops.case_models import named_inputs
from tests.ops.cases import OP_CASES

NAMES = {
    "MoHAggregatedAttention": (
        "plain",
        "nothing_optional",
        "query_scale_only",
        "window_offset_only",
        "without_window_tokens",
        "kernel_5x3",
        "large_epsilon",
    ),
    "MoHAttention": ("plain_rank3", "causal_grouped", "additive_mask_rank4"),
    "MoHMatMulNBits": ("eight_bits",),
    "MoHOutputProjection": ("no_bias",),
    "MoHOutputProjectionNBits": ("no_bias",),
    "MoHQueryProjection": ("plain",),
    "MoHQueryProjectionNBits": ("plain",),
    "MoHRouter": ("two_stage", "mask_mode_ties"),
    "MoHTokenConv": ("conv_gelu_gated_no_bias", "conv_oblong_kernel"),
}
CASES = [
    case
    for op, names in NAMES.items()
    for case in OP_CASES[op]
    if case.name in names and case.dtype == "float32"
]


class _Operator(torch.nn.Module):
    """One operator; the tensors are the module's inputs, all else is part of the program."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.operator = OPERATORS[case.op]
        self.arguments = arguments(case)
        self.tensors = [value for value in self.arguments if torch.is_tensor(value)]

    def forward(self, *tensors: Tensor) -> Tensor:
        given = iter(tensors)
        values = [next(given) if torch.is_tensor(v) else v for v in self.arguments]
        return self.operator(*values)


def _translated(case: Case) -> ir.Model:
    module = _Operator(case)
    program = torch.export.export(module, tuple(module.tensors))
    return emit(program, input_names=list(named_inputs(case)), opset=20)


@pytest.mark.parametrize("case", first_of_each(CASES, lambda case: case.op), ids=str)
def test_translation_is_the_node_that_the_contract_tests(case: Case):
    (node,) = ir.to_proto(_translated(case)).graph.node
    (tested,) = single_node_model(case.op, case.input_types(), case.attributes).graph.node
    assert list(node.input) == list(tested.input)
    by_name = {attribute.name: attribute for attribute in node.attribute}
    assert by_name == {attribute.name: attribute for attribute in tested.attribute}


def test_every_operator_has_cases_and_they_exist():
    assert NAMES.keys() == OPS.keys()
    assert len(CASES) == sum(len(names) for names in NAMES.values())
