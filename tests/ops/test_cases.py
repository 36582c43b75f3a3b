from __future__ import annotations

import numpy as np
import pytest

from moh_deploy.ops import MOH_ATTENTION, MOH_ROUTER, OPS
from moh_deploy.ops.cases import Case
from moh_deploy.ops.spec import FLOAT_TYPES
from moh_deploy.ops.tolerances import TOLERANCES, tolerance_for

CASES = [case for spec in OPS.values() for case in spec.cases]


def test_names_are_unique():
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names))


def test_every_case_exists_in_every_dtype():
    assert {case.dtype for case in CASES} == set(FLOAT_TYPES)
    assert len(CASES) == len(FLOAT_TYPES) * len({(case.op, case.name) for case in CASES})


@pytest.mark.parametrize("case", CASES[::7], ids=str)
def test_inputs_are_the_same_at_each_call_and_contiguous(case: Case):
    for first, second in zip(case.inputs(), case.inputs(), strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            assert first.flags.c_contiguous
            assert first.tobytes() == second.tobytes()


def test_cases_differ_in_their_inputs():
    plain, closed = (
        c
        for c in MOH_ATTENTION.cases
        if c.name in ("plain_rank3", "all_open") and c.dtype == "float32"
    )
    assert not np.array_equal(plain.inputs()[0], closed.inputs()[0])


@pytest.mark.parametrize("case", MOH_ROUTER.cases, ids=str)
def test_no_case_depends_on_a_near_tie(case: Case):
    """The last chosen probability is equal to the next one in float32, or clearly larger."""
    routed = case.inputs()[0]
    top_k = int(case.attributes["top_k"])
    if routed is None or top_k == routed.shape[-1]:
        return
    exponentials = np.exp(routed.astype(np.float64) - routed.max(-1, keepdims=True))
    ranked = -np.sort(-exponentials / exponentials.sum(-1, keepdims=True), axis=-1)
    last, following = ranked[..., top_k - 1], ranked[..., top_k]
    tied = last.astype(np.float32) == following.astype(np.float32)
    assert np.all(tied | (last > following * (1 + 1e-5)))


@pytest.mark.parametrize("spec", OPS.values(), ids=lambda spec: spec.name)
def test_cases_reach_every_input_dtype_and_optional_input(spec):
    for index, given in enumerate(spec.inputs):
        padding = [None] * len(spec.inputs)
        types = [(*case.input_types(), *padding)[index] for case in spec.cases]
        assert {t.dtype for t in types if t is not None} == set(given.types)
        assert (None in types) == given.optional


def test_score_bound_holds():
    """A bound that is too low would make the tolerance too tight for correct kernels."""
    for case in MOH_ATTENTION.cases:
        query, key = (a.astype(np.float64) for a in case.inputs()[:2])
        head_dim = query.shape[-1] // (case.attributes["q_num_heads"] if query.ndim == 3 else 1)
        finite = [np.max(np.abs(a[np.isfinite(a)])) for a in (query, key)]
        typical = case.attributes["scale"] * finite[0] * finite[1] * np.sqrt(head_dim)
        assert typical <= 2 * case.score_bound, case


def test_tolerance_grows_with_the_scores_and_gives_its_reason():
    small, large = (tolerance_for("float32", score_bound=bound) for bound in (1.0, 1000.0))
    assert small.absolute < large.absolute < 1e-3
    assert all(len(tolerance.reason) > 40 for tolerance in TOLERANCES.values())
