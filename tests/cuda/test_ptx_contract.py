"""The kernels, interpreted from the PTX that nvcc emits, fulfil the contract.

What is compiled is run, inline assembly included; the race check is on, and asynchronous copies
come as late as they may.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from _pytest.mark import ParameterSet

from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import FLOAT_TYPES
from tests.cuda import conformance, golden
from tests.cuda.drawn import cases_of_several_tiles
from tests.cuda.interpreted import Interpreted
from tests.cuda.kernels import WIDE_PLANS, Plan, plans_of
from tests.cuda.many_tokens import MANY_TOKENS
from tests.cuda.ptx.machine import Checks
from tests.cuda.run_cases import CUDA_OPS
from tests.nightly import nightly, nightly_if, sampled
from tests.ops.cases import OP_CASES
from tests.plugins.aggregated_attention_setups import AggregatedAttentionSetup
from tests.plugins.attention_setups import AttentionSetup, MaskSetup

EVERYTHING = Checks(races=True, late_copies=True)
KERNELS_OF_OPS = "route_tokens|attend|compact|combine"
NAMES = [(op, name) for op in CUDA_OPS for name in dict.fromkeys(c.name for c in OP_CASES[op])]
TILES = [
    pytest.param(
        case,
        plan,
        id=f"{number}-{case.dtype}-{plan}",
        # Of the blocks with 32 rows a warp, a push takes one by turns.
        marks=nightly_if(number % 4 != 0 or plan in WIDE_PLANS[number % 8 // 2 :][:2]),
    )
    for number, case in enumerate(cases_of_several_tiles())
    for plan in plans_of(case)
    if plan in (Plan("sparse", 1), Plan("dense", 3), *WIDE_PLANS)
]


_CACHE = "filled_chunk"


def _runs() -> Iterator[ParameterSet]:
    """Yield every case in every dtype and plan: a push runs half of them, in one each by turns."""
    for number, (op, name) in enumerate(NAMES):
        cases = [case for case in OP_CASES[op] if case.name == name]
        runs = [(case, plan) for case in cases for plan in plans_of(case)]
        for place, (case, plan) in enumerate(runs):
            by_turns = number % 2 == 0 and place == number // 2 % len(runs)
            # Of caches with room a push runs one: all end the keys at the same place.
            pushed = place == 0 if name == _CACHE else by_turns and not name.startswith("filled")
            left_out = nightly_if(not pushed)
            yield pytest.param(case, plan, id=f"{case}-{plan}", marks=left_out)


@sampled(10)
@pytest.mark.parametrize(("case", "plan"), tuple(_runs()))
def test_case_of_the_contract_is_right(interpreted: Interpreted, case: Case, plan: Plan):
    problem = interpreted.find_mismatch(case, plan, EVERYTHING)
    assert problem is None, problem


@sampled(10)
@pytest.mark.parametrize(("case", "plan"), TILES)
def test_attention_of_several_tiles_is_right(interpreted: Interpreted, case: Case, plan: Plan):
    problem = interpreted.find_mismatch(case, plan, EVERYTHING)
    assert problem is None, problem


@nightly
def test_router_is_right_where_a_warp_takes_several_tokens(interpreted: Interpreted):
    problem = interpreted.find_mismatch(MANY_TOKENS, checks=EVERYTHING)
    assert problem is None, problem


@pytest.mark.parametrize("case", cases_of_several_tiles()[: len(FLOAT_TYPES)], ids=str)
def test_copies_may_come_at_once(interpreted: Interpreted, case: Case):
    """Then they overwrite what is still read, if a barrier is missing."""
    problem = interpreted.find_mismatch(case, checks=Checks(late_copies=False))
    assert problem is None, problem


@nightly
def test_every_kernel_runs_and_is_right(interpreted: Interpreted):
    interpreted.launched.clear()
    for case in _cases_of_every_kernel():
        plans = plans_of(case)
        for plan in (*plans[:2], *(plan for plan in plans if plan in WIDE_PLANS)):
            problem = interpreted.find_mismatch(case, plan, EVERYTHING)
            assert problem is None, problem
    kernels = {name for name in interpreted.kernels if re.search(KERNELS_OF_OPS, name)}
    assert kernels - interpreted.launched == set()


def _cases_of_every_kernel() -> Iterator[Case]:
    """For each size of a head that has kernels of its own: with a mask and without one."""
    attention = AttentionSetup(seq_len=9, kv_len=70, kv_num_heads=1)
    aggregated = AggregatedAttentionSetup(num_heads=1)
    for dtype in FLOAT_TYPES:
        for dim in (32, 64, 80, 96, 128, 192, 256):
            setup = replace(attention, head_dim=dim, value_dim=dim, dtype=dtype)
            yield setup.case()
            yield replace(setup, mask=MaskSetup()).case()
        for dim in (32, 64, 128, 256):
            yield replace(aggregated, head_dim=dim, dtype=dtype).case()
        yield OP_CASES["MoHRouter"][0].in_dtype(dtype)
        yield replace(attention, kv_len=1000, seq_len=1, dtype=dtype).case()


@sampled(4)
@pytest.mark.parametrize("name", conformance.PRIMITIVES)
def test_primitive_computes_what_its_formula_says(interpreted: Interpreted, name: str):
    words = conformance.inputs(name)
    problem = conformance.find_difference(name, words, interpreted.run_primitive(name, words))
    assert problem is None, problem


def test_primitives_are_what_a_gpu_computed(interpreted: Interpreted):
    if not golden.GOLDEN.exists():
        pytest.skip(f"no GPU has recorded {golden.GOLDEN.name} yet")
    for name, vectors in golden.read().items():
        got = interpreted.run_primitive(name, vectors.words_in)
        problem = conformance.find_difference(name, vectors.words_in, got, vectors.words_out)
        assert problem is None, problem
