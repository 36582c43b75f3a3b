"""The projections on the CPU kernels, for sizes and gates that no table lists."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from moh_deploy.ops.spec import FLOAT_TYPES
from tests.nightly import sampled
from tests.ops.case_models import case_model, named_inputs
from tests.ops.cases.nbits_projection import BLOCK, in_4_bits
from tests.plugins.draws import nbits_projection_setups, projection_setups
from tests.plugins.kernels import (
    Kernels,
    assert_right,
    memory_for,
    run_into,
    run_session,
    run_with_constants,
    with_inputs,
)
from tests.plugins.nbits_projection_setups import NBitsProjectionSetup
from tests.plugins.projection_setups import ProjectionSetup

QUERY = ProjectionSetup(batch=2, seq_len=130, num_heads=5, head_dim=24, width=140)
NBITS_QUERY = NBitsProjectionSetup(**vars(QUERY))
PROJECTIONS = {
    "query": QUERY,
    "output": replace(QUERY, op="MoHOutputProjection"),
    "query_nbits": NBITS_QUERY,
    "output_nbits": replace(NBITS_QUERY, op="MoHOutputProjection"),
}
IN_EACH_DTYPE = [
    *((name, dtype) for name in ("query", "output") for dtype in FLOAT_TYPES),
    ("query_nbits", "float32"),
    ("output_nbits", "float32"),
]
QUERIES_IN_EACH_DTYPE = [pair for pair in IN_EACH_DTYPE if "query" in pair[0]]


@sampled(3)
@given(setup=projection_setups())
def test_any_projection_agrees_with_the_reference(kernels: Kernels, setup: ProjectionSetup):
    case = setup.case()
    assert_right(case, kernels.run(case))


@given(setup=nbits_projection_setups())
def test_any_projection_of_4_bits_agrees_with_the_reference(
    kernels: Kernels, setup: NBitsProjectionSetup
):
    case = setup.case()
    assert_right(case, kernels.run(case))


@sampled(3)
@pytest.mark.parametrize("name", ["query", "output"])
def test_long_sums_are_nearly_as_exact_as_short_ones(kernels: Kernels, name: str):
    setup = replace(PROJECTIONS[name], batch=1, seq_len=100, num_heads=2, head_dim=16)
    if name == "query":
        setup = replace(setup, width=4096)
    else:
        setup = replace(setup, num_heads=32, head_dim=128, gates="all", width=33)
    assert_right(setup.case(), kernels.run(setup.case()))


# A weight of the model is packed when the session is made, another at each call.


@sampled(4)
@pytest.mark.parametrize(("name", "dtype"), IN_EACH_DTYPE)
def test_constant_weight_gives_the_same_bits_as_one_of_each_call(
    kernels: Kernels, name: str, dtype: str
):
    case = replace(PROJECTIONS[name], dtype=dtype).case()
    weights = [item for item in ("W", "scales") if item in named_inputs(case)]
    constant = run_with_constants(kernels, case, *weights)
    assert_right(case, [constant])
    assert constant.tobytes() == kernels.run(case)[0].tobytes()


@pytest.mark.parametrize("name", PROJECTIONS)
def test_weight_of_each_call_may_differ(kernels: Kernels, name: str):
    """What was packed for one call must not be used for the next."""
    case = PROJECTIONS[name].case()
    session = kernels.session(case_model(case))
    run_session(session, case)
    numbers = "scales" if "nbits" in name else "W"
    doubled = with_inputs(case, **{numbers: 2 * named_inputs(case)[numbers]})
    assert_right(doubled, run_session(session, doubled))


# Closed heads.


def _by_head(array: np.ndarray, setup: ProjectionSetup) -> np.ndarray:
    """A view [B, S, H, D]."""
    return array.reshape(setup.batch, setup.seq_len, setup.num_heads, setup.head_dim)


@sampled(4)
@pytest.mark.parametrize(("name", "dtype"), QUERIES_IN_EACH_DTYPE)
@pytest.mark.parametrize("head_dim", [5, 16, 24, 70])
def test_queries_of_closed_heads_are_written_as_0(
    kernels: Kernels, head_dim: int, name: str, dtype: str
):
    setup = replace(PROJECTIONS[name], head_dim=head_dim, dtype=dtype)
    case = setup.case()
    output = run_into(memory_for(case, np.nan), kernels.session(case_model(case)), case)
    closed = case.inputs()[2] == 0
    assert closed.any()
    assert np.all(_by_head(output, setup)[closed] == 0)
    assert np.all(_by_head(output, setup)[~closed].astype(np.float32).any(axis=-1))


@sampled(4)
@pytest.mark.parametrize("head_dim", [5, 16, 24, 70])
def test_output_projection_does_not_read_rows_of_closed_heads(kernels: Kernels, head_dim: int):
    setup = replace(PROJECTIONS["output"], head_dim=head_dim)
    case = setup.case()
    x, _, gates, _ = case.inputs()
    poisoned = x.copy()
    _by_head(poisoned, setup)[gates == 0] = np.nan
    assert kernels.run(with_inputs(case, X=poisoned))[0].tobytes() == kernels.run(case)[0].tobytes()


@pytest.mark.parametrize(
    ("name", "head_dim"),
    [
        ("query", 24),
        ("output", 24),
        *((name, size) for name in ("query_nbits", "output_nbits") for size in (32, 64)),
    ],
)
def test_weights_of_a_head_that_nobody_chose_are_not_used(
    kernels: Kernels, name: str, head_dim: int
):
    case = replace(PROJECTIONS[name], gates="no_head_0", head_dim=head_dim).case()
    numbers = "scales" if "nbits" in name else "W"
    poisoned = named_inputs(case)[numbers].copy()  # W [K, N], scales [N, blocks]
    of_head = {
        "query": np.s_[:, :head_dim],
        "output": np.s_[:head_dim],
        "query_nbits": np.s_[:head_dim],
        "output_nbits": np.s_[:, : head_dim // BLOCK],
    }
    poisoned[of_head[name]] = np.nan
    other = with_inputs(case, **{numbers: poisoned})
    assert kernels.run(other)[0].tobytes() == kernels.run(case)[0].tobytes()


# A row's bits depend on its own token alone.


@pytest.mark.parametrize("name", PROJECTIONS)
def test_other_tokens_change_no_bit(kernels: Kernels, name: str):
    """A token's answer does not depend on what else is in the batch, or how many there are."""
    case = replace(PROJECTIONS[name], gates="shared_heads").case()
    x, gates = (named_inputs(case)[item].copy() for item in ("X", "gates"))
    others = np.random.default_rng(0).random(gates.shape[:2]) < 0.5
    gates[others] = 0
    x[others] = np.nan if "query" in name else 0
    fewer = kernels.run(with_inputs(case, X=x, gates=gates))[0]
    np.testing.assert_array_equal(kernels.run(case)[0][~others], fewer[~others])
    if "nbits" in name:
        one = kernels.run(with_inputs(case, X=x[:1, :1], gates=gates[:1, :1]))[0]
        np.testing.assert_array_equal(fewer[:1, :1], one)


@pytest.mark.parametrize(
    ("x", "is_number"),
    [
        (np.full(140, 1e-42), True),
        (np.where(np.arange(140) == 3, np.inf, 1.0), False),
        (np.where(np.arange(140) == 70, np.nan, 1.0), False),
    ],
    ids=["subnormal", "infinite", "nan"],
)
def test_rows_without_a_scale_reach_no_other_row(kernels: Kernels, x: np.ndarray, is_number: bool):
    case = replace(NBITS_QUERY, gates="all").case()
    given = named_inputs(case)
    changed = given["X"].copy()
    changed[0, 0] = x
    got, before = (kernels.run(item)[0] for item in (with_inputs(case, X=changed), case))
    np.testing.assert_array_equal(got[0, 1:], before[0, 1:])
    np.testing.assert_array_equal(got[1], before[1])
    if is_number:  # too small for a step
        np.testing.assert_allclose(got[0, 0], given["bias"], atol=1e-30)
    else:
        assert np.isnan(got[0, 0]).all()


def test_digits_behind_the_last_row_are_not_read(kernels: Kernels):
    case = replace(NBITS_QUERY, width=33).case()
    other = named_inputs(case)["W"].copy()
    digits, _ = in_4_bits(np.zeros((33, len(other))), np.random.default_rng(5))
    other[:, 1, 1:] = digits[:, 1, 1:]  # of the second block's 32 rows there is the first
    other[:, 1, 0] = other[:, 1, 0] & 15 | digits[:, 1, 0] & 0xF0
    assert kernels.run(with_inputs(case, W=other))[0].tobytes() == kernels.run(case)[0].tobytes()
