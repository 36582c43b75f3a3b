"""Results do not depend on how many threads there are, or on which of them computes what."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import FLOAT_TYPES
from moh_deploy.runtime.kernel_use import BFLOAT16_SETS
from tests.nightly import in_turn, sampled
from tests.ops.case_models import case_model
from tests.ops.cases.nbits_product import product_case
from tests.plugins.aggregated_attention_setups import AggregatedAttentionSetup
from tests.plugins.attention_setups import AttentionSetup, MaskSetup
from tests.plugins.kernels import VECTOR_SETS, Kernels, assert_right, kernels_of, run_session
from tests.plugins.nbits_projection_setups import NBitsProjectionSetup
from tests.plugins.projection_setups import ProjectionSetup
from tests.plugins.router_setups import RouterSetup
from tests.plugins.token_conv_setups import TokenConvSetup

pytestmark = pytest.mark.usefixtures("all_cores")

_PROJECTION = ProjectionSetup(batch=2, seq_len=333, num_heads=5, head_dim=24, width=140)
_NBITS = NBitsProjectionSetup(batch=2, seq_len=233, num_heads=5, head_dim=32, width=140)
_MANY_TASKS = AttentionSetup(
    batch=2, seq_len=333, kv_len=333, kv_num_heads=3, head_dim=24, value_dim=24
)
SETUPS = {
    "many_tasks": _MANY_TASKS,
    "causal": replace(_MANY_TASKS, is_causal=True),
    "causal_grouped": replace(_MANY_TASKS, is_causal=True, group=4, batch=1),
    "masked": replace(_MANY_TASKS, rank=4, mask=MaskSetup("float32", pattern="blocks")),
    "uneven_heads": replace(_MANY_TASKS, gates="no_head_0"),
    "decode": replace(_MANY_TASKS, seq_len=1, kv_len=1500, kv_num_heads=8),
    "aggregated": AggregatedAttentionSetup(
        batch=2, num_heads=3, height=31, width=29, head_dim=24, pooled=49
    ),
    "query_projection": _PROJECTION,
    "output_projection": replace(_PROJECTION, op="MoHOutputProjection"),
    "query_projection_nbits": _NBITS,
    "output_projection_nbits": replace(_NBITS, op="MoHOutputProjection"),
    "router": RouterSetup(batch=2, seq_len=333, num_routed=37, top_k=9, num_shared=3),
    "token_conv": TokenConvSetup(
        batch=2, height=23, width=19, channels=83, activation="gelu", gated=True, input_bias=True
    ),
}


def assert_same_bits_by_any_number_of_threads(kernels: Kernels, case: Case) -> None:
    one, two, eight = (
        [output.tobytes() for output in replace(kernels, threads=n).run(case)] for n in (1, 2, 8)
    )
    assert one == two == eight


@sampled(10)
@pytest.mark.parametrize(("name", "dtype"), in_turn(SETUPS, FLOAT_TYPES))
def test_one_two_and_eight_threads_give_the_same_bits(kernels: Kernels, name: str, dtype: str):
    assert_same_bits_by_any_number_of_threads(kernels, replace(SETUPS[name], dtype=dtype).case())


@pytest.mark.parametrize("instruction_set", BFLOAT16_SETS)
def test_one_two_and_eight_threads_give_the_same_bits_of_bfloat16_products(instruction_set: str):
    kernels = replace(kernels_of(instruction_set), compute_type="bfloat16")
    assert_same_bits_by_any_number_of_threads(kernels, SETUPS["causal"].case())


@sampled(4)
@pytest.mark.parametrize("tokens", [1, 1500])
def test_threads_change_no_bit_of_products_of_few_bits(kernels: Kernels, tokens: int):
    """1500 tokens are more than are rounded at a time."""
    assert_same_bits_by_any_number_of_threads(
        kernels, product_case("threads", "", (1, tokens, 70), 333)
    )


@sampled(10)
@pytest.mark.parametrize(("name", "instruction_set"), in_turn(SETUPS, VECTOR_SETS))
def test_every_run_of_a_session_gives_the_same_bits(name: str, instruction_set: str):
    case = SETUPS[name].case()
    session = replace(kernels_of(instruction_set), threads=8).session(case_model(case))
    runs = {run_session(session, case)[0].tobytes() for _ in range(10)}
    assert len(runs) == 1


@sampled(3)
def test_sessions_of_several_sizes_run_at_the_same_time(kernels: Kernels):
    """Scratch belongs to a thread, whichever session and sizes it works for."""
    cases = [replace(SETUPS["causal"], seq_len=n, kv_len=300, batch=1).case() for n in (1, 40, 290)]
    sessions = [replace(kernels, threads=2).session(case_model(case)) for case in cases]

    def run(i: int) -> np.ndarray:
        return run_session(sessions[i % 3], cases[i % 3])[0]

    with ThreadPoolExecutor(6) as pool:
        outputs = list(pool.map(run, range(60)))
    for i, case in enumerate(cases):
        assert_right(case, [outputs[i]])
        assert len({output.tobytes() for output in outputs[i::3]}) == 1
