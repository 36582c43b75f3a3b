"""Every named case, through every implementation, judged by one function."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from moh_deploy.errors import ExportError
from moh_deploy.ops import OPS
from moh_deploy.ops.cases import Case, find_mismatch
from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.ops.spec import FLOAT_TYPES
from tests.nightly import nightly_if, one_in, sampled
from tests.ops.batches import BATCHES, Batch, assert_nothing_wrong, assert_outputs_right
from tests.ops.cases import ALL_CASES, OP_CASES
from tests.ops.implementations import IMPLEMENTATIONS, Implementation, case_model, run_onnxruntime

CASES = [*ALL_CASES]
OPSETS = (18, 19, 20, 21, 22, 23)


COMPILED = [
    implementation
    for implementation in IMPLEMENTATIONS
    if implementation.name.startswith("ort_kernels")
]
IN_TURN = [
    implementation for implementation in COMPILED if not implementation.name.endswith("amx_bf16")
]


def _is_left_out(implementation: Implementation, number: int, batch: Batch) -> bool:
    """A push runs a batch on one instruction set's kernels, by turns, as their source is the same;
    those that have instructions of their own for bfloat16 on it. What amx_bf16 has of its own is
    in tests/plugins/test_bfloat16_compute.py. Function bodies and torch's operators run
    in one dtype of each op and implementation, by turns."""
    if implementation not in COMPILED or (
        implementation.name.endswith("avx512_bf16") and batch.dtype == "bfloat16"
    ):
        op, dtype = divmod(number, len(FLOAT_TYPES))
        return (op + IMPLEMENTATIONS.index(implementation)) % len(FLOAT_TYPES) != dtype
    return implementation is not IN_TURN[number % len(IN_TURN)]


RUNS = [
    pytest.param(
        implementation,
        batch,
        marks=nightly_if(_is_left_out(implementation, number, batch)),
        id=f"{implementation}-{batch}",
    )
    for implementation in IMPLEMENTATIONS
    for number, batch in enumerate(BATCHES)
]


@pytest.mark.parametrize(("implementation", "batch"), RUNS)
def test_implementation_agrees_with_the_reference(implementation: Implementation, batch: Batch):
    assert_outputs_right(batch.cases, implementation.run)


@sampled(4)
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_model_of_one_node_is_valid_onnx(batch: Batch):
    assert_nothing_wrong(
        batch.cases, lambda case: onnx.checker.check_model(case_model(case), full_check=True)
    )


def _one_case_a_variant() -> list[Case]:
    """The first float16 case of each function body: half precision exercises the casts too."""
    cases = {
        (case.op, OPS[case.op].variant(case.input_types(), case.attributes).key()): case
        for case in reversed(CASES)
        if case.dtype == "float16"
    }
    return list(cases.values())


@sampled(3)
@pytest.mark.parametrize("case", _one_case_a_variant(), ids=str)
def test_onnxruntime_has_nothing_to_warn_of(case: Case, capfd: pytest.CaptureFixture[str]):
    run_onnxruntime(case)
    assert capfd.readouterr() == ("", "")


@sampled(4)
@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith("empty_")], ids=str)
def test_function_bodies_take_a_size_of_0_that_only_a_run_tells(case: Case):
    """ONNX Runtime rewrites a graph otherwise where it does not know all sizes."""
    free = tuple(
        replace(type_, shape=tuple(size or f"free_{axis}" for axis, size in enumerate(type_.shape)))
        if type_ is not None
        else None
        for type_ in case.input_types()
    )
    model = single_node_model(case.op, free, case.attributes)
    for optimised in (True, False):
        assert find_mismatch(case, run_onnxruntime(case, model, optimised=optimised)) is None


@sampled(2)
@pytest.mark.parametrize("opset", one_in(len(OPSETS) - 1, OPSETS))
def test_every_function_body_works_at_every_opset(opset: int):
    def run(case: Case) -> list[np.ndarray]:
        model = case_model(case, opset=opset)
        onnx.checker.check_model(model, full_check=True)
        return run_onnxruntime(case, model)

    assert_outputs_right(_one_case_a_variant(), run)


@pytest.mark.parametrize("op", OPS)
def test_bodies_import_the_opset_and_refuse_one_before_18(op: str):
    case = OP_CASES[op][0]
    attributes = OPS[op].complete(case.attributes)
    for opset in (18, 23):
        body = OPS[op].function(case.input_types(), attributes, opset=opset)
        assert (body.domain, body.name, body.overload) == ("moh", op, "")
        assert {known.domain: known.version for known in body.opset_import}[""] == opset
    with pytest.raises(ExportError, match=f"{op}: function body for opset 17; expected 18 or la"):
        OPS[op].function(case.input_types(), attributes, opset=17)
