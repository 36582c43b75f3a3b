"""The projections on the CPU kernels, for sizes and gates that no table lists."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given

from moh_deploy.ops.cases import Case
from moh_deploy.ops.onnx_schema import ELEMENT_TYPES
from moh_deploy.ops.spec import FLOAT_TYPES
from moh_deploy.runtime.onnxruntime.values import from_ort, to_ort
from tests.nightly import sampled
from tests.ops.case_models import case_model
from tests.plugins.draws import projection_setups
from tests.plugins.kernels import Kernels, assert_right, memory_for, run_into, run_session
from tests.plugins.projection_setups import ProjectionSetup

QUERY = ProjectionSetup(batch=2, seq_len=130, num_heads=5, head_dim=24, width=140)
OUTPUT = replace(QUERY, op="MoHOutputProjection")
PROJECTIONS = {"query": QUERY, "output": OUTPUT}


@sampled(3)
@given(setup=projection_setups())
def test_any_projection_agrees_with_the_reference(kernels: Kernels, setup: ProjectionSetup):
    case = setup.case()
    assert_right(case, kernels.run(case))


@sampled(3)
@pytest.mark.parametrize("name", PROJECTIONS)
def test_long_sums_are_nearly_as_exact_as_short_ones(kernels: Kernels, name: str):
    setup = replace(PROJECTIONS[name], batch=1, seq_len=100, num_heads=2, head_dim=16)
    if name == "query":
        setup = replace(setup, width=4096)
    else:
        setup = replace(setup, num_heads=32, head_dim=128, gates="all", width=33)
    assert_right(setup.case(), kernels.run(setup.case()))


# A weight of the model is packed when the session is made, another at each call.


def _with_constant_weight(case: Case) -> onnx.ModelProto:
    model = case_model(case)
    weight = case.inputs()[1]
    given = [one for one in model.graph.input if one.name != "W"]
    del model.graph.input[:]
    model.graph.input.extend(given)
    model.graph.initializer.append(
        onnx.helper.make_tensor(
            "W", ELEMENT_TYPES[case.dtype], weight.shape, weight.tobytes(), raw=True
        )
    )
    return model


def _run_with_constant_weight(kernels: Kernels, case: Case) -> np.ndarray:
    x, _, *others = case.inputs()
    session = kernels.session(_with_constant_weight(case))
    names = {given.name for given in session.get_inputs()}
    assert "W" not in names
    return _run_named(session, {"X": x, "gates": others[0], "bias": others[1]})


def _run_named(session, arrays) -> np.ndarray:
    values = {name: to_ort(array) for name, array in arrays.items() if array is not None}
    return from_ort(session.run_with_ort_values(None, values)[0])


@sampled(4)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("name", PROJECTIONS)
def test_constant_weight_gives_the_same_bits_as_one_of_each_call(
    kernels: Kernels, name: str, dtype: str
):
    case = replace(PROJECTIONS[name], dtype=dtype).case()
    constant = _run_with_constant_weight(kernels, case)
    assert_right(case, [constant])
    assert constant.tobytes() == kernels.run(case)[0].tobytes()


@pytest.mark.parametrize("name", PROJECTIONS)
def test_weight_of_each_call_may_differ(kernels: Kernels, name: str):
    """What was packed for one call must not be used for the next."""
    case = PROJECTIONS[name].case()
    x, weight, gates, bias = case.inputs()
    session = kernels.session(case_model(case))
    run_session(session, case)
    doubled = replace(case, build=lambda _: (x, 2 * weight, gates, bias))
    assert_right(doubled, run_session(session, doubled))


# Closed heads.


def _by_head(array: np.ndarray, setup: ProjectionSetup) -> np.ndarray:
    """A view [B, S, H, D]."""
    return array.reshape(setup.batch, setup.seq_len, setup.num_heads, setup.head_dim)


@sampled(4)
@pytest.mark.parametrize("dtype", FLOAT_TYPES)
@pytest.mark.parametrize("head_dim", [5, 16, 24, 70])
def test_queries_of_closed_heads_are_written_as_0(kernels: Kernels, head_dim: int, dtype: str):
    setup = replace(QUERY, head_dim=head_dim, dtype=dtype)
    case = setup.case()
    output = run_into(memory_for(case, np.nan), kernels.session(case_model(case)), case)
    closed = case.inputs()[2] == 0
    assert closed.any()
    assert np.all(_by_head(output, setup)[closed] == 0)
    assert np.all(_by_head(output, setup)[~closed].astype(np.float32).any(axis=-1))


@sampled(4)
@pytest.mark.parametrize("head_dim", [5, 16, 24, 70])
def test_output_projection_does_not_read_rows_of_closed_heads(kernels: Kernels, head_dim: int):
    setup = replace(OUTPUT, head_dim=head_dim)
    case = setup.case()
    x, weight, gates, bias = case.inputs()
    poisoned = x.copy()
    _by_head(poisoned, setup)[gates == 0] = np.nan
    poisoned_case = replace(case, build=lambda _: (poisoned, weight, gates, bias))
    assert kernels.run(poisoned_case)[0].tobytes() == kernels.run(case)[0].tobytes()


@pytest.mark.parametrize("name", PROJECTIONS)
def test_weights_of_a_head_that_nobody_chose_are_not_used(kernels: Kernels, name: str):
    setup = replace(PROJECTIONS[name], gates="no_head_0")
    case = setup.case()
    x, weight, gates, bias = case.inputs()
    poisoned = weight.copy()
    head = poisoned[:, : setup.head_dim] if name == "query" else poisoned[: setup.head_dim]
    head[:] = np.nan
    poisoned_case = replace(case, build=lambda _: (x, poisoned, gates, bias))
    assert kernels.run(poisoned_case)[0].tobytes() == kernels.run(case)[0].tobytes()


# A row's bits depend on its own token alone.


@pytest.mark.parametrize("name", PROJECTIONS)
def test_other_tokens_change_no_bit(kernels: Kernels, name: str):
    setup = replace(PROJECTIONS[name], gates="shared_heads")
    case = setup.case()
    x, weight, gates, bias = (array.copy() for array in case.inputs())
    others = np.random.default_rng(0).random(gates.shape[:2]) < 0.5
    gates[others] = 0
    x[others] = np.nan if name == "query" else 0
    fewer = replace(case, build=lambda _: (x, weight, gates, bias))
    np.testing.assert_array_equal(kernels.run(case)[0][~others], kernels.run(fewer)[0][~others])
