import numpy as np
import pytest

from moh_deploy.ops import MOH_AGGREGATED_ATTENTION, MOH_ATTENTION, MOH_ROUTER, OPS
from moh_deploy.ops.cases import OP_TOLERANCES, Case, op_tolerance_for
from tests.nightly import sampled
from tests.ops.cases import ALL_CASES, OP_CASES

CASES = [*ALL_CASES]


def test_names_are_unique():
    names = [str(case) for case in CASES]
    assert len(names) == len(set(names))


def test_every_case_exists_in_every_dtype_of_its_op():
    for op, cases in OP_CASES.items():
        dtypes = OPS[op].inputs[0].types
        assert {case.dtype for case in cases} == set(dtypes)
        assert len(cases) == len(dtypes) * len({case.name for case in cases})


@sampled(3)
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
        for c in OP_CASES[MOH_ATTENTION.name]
        if c.name in ("plain_rank3", "all_open") and c.dtype == "float32"
    )
    assert not np.array_equal(plain.inputs()[0], closed.inputs()[0])


@sampled(3)
@pytest.mark.parametrize("case", OP_CASES[MOH_ROUTER.name], ids=str)
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


@sampled(3)
@pytest.mark.parametrize("spec", OPS.values(), ids=lambda spec: spec.name)
def test_cases_reach_every_input_dtype_and_optional_input(spec):
    for index, given in enumerate(spec.inputs):
        padding = [None] * len(spec.inputs)
        types = [(*case.input_types(), *padding)[index] for case in OP_CASES[spec.name]]
        assert {t.dtype for t in types if t is not None} == set(given.types)
        assert (None in types) == given.optional


def test_score_bound_holds():
    """A bound that is too low would make the tolerance too tight for correct kernels."""
    for case in OP_CASES[MOH_ATTENTION.name]:
        query, key = (a.astype(np.float64) for a in case.inputs()[:2])
        head_dim = query.shape[-1] // (case.attributes["q_num_heads"] if query.ndim == 3 else 1)
        finite = [np.max(np.abs(a[np.isfinite(a)]), initial=0) for a in (query, key)]
        typical = case.attributes["scale"] * finite[0] * finite[1] * np.sqrt(head_dim)
        # The product is rounded, too.
        assert typical <= 2 * case.score_bound * (1 + 1e-9), case


@pytest.mark.parametrize("case", OP_CASES[MOH_AGGREGATED_ATTENTION.name][::3], ids=str)
def test_score_bound_of_aggregated_attention_holds(case: Case):
    """The same for the scores of every query with every key, in its window or not."""
    heads, every = case.attributes["num_heads"], len(MOH_AGGREGATED_ATTENTION.inputs)
    inputs = (*case.inputs(), *[None] * every)[:every]
    query, key, pooled = (_by_head(inputs[i], heads) for i in (0, 1, 3))
    if case.attributes["normalize"]:
        query, key, pooled = (_unit(array) for array in (query, key, pooled))
    embedding, scale = (
        np.float64(x) if a is None else a for a, x in zip(inputs[6:8], (0, 1), strict=True)
    )
    query = (query + embedding) * (scale if np.ndim(scale) == 0 else scale.T[:, :, None])
    keys = np.concatenate([key, pooled], axis=1)
    scores = np.einsum("bnhd,bmhd->bhnm", query, keys)
    biases = [np.max(np.abs(a[np.isfinite(a)]), initial=0) for a in inputs[8:10] if a is not None]
    assert np.max(np.abs(scores)) + max(biases, default=0) <= 2 * case.score_bound


def _by_head(array: np.ndarray, heads: int) -> np.ndarray:
    """[B, N, H, D], with 0 for what is not finite."""
    finite = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
    return finite.reshape(*array.shape[:2], heads, -1)


def _unit(array: np.ndarray) -> np.ndarray:
    length = np.sqrt((array**2).sum(axis=-1, keepdims=True))
    return array / np.maximum(length, 1e-12)


def test_tolerance_grows_with_the_scores_and_gives_its_reason():
    small, large = (op_tolerance_for("float32", score_bound=bound) for bound in (1.0, 1000.0))
    assert small.absolute < large.absolute < 1e-3
    assert all(len(tolerance.reason) > 40 for tolerance in OP_TOLERANCES.values())
