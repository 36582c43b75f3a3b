"""Invariants of MoHRouter, on the function body as ONNX Runtime runs it."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moh_deploy.errors import ExportError
from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.ops.router import RouterVariant, function_body
from moh_deploy.ops.spec import TensorType
from tests.nightly import nightly

NUM_ROUTED = 7
NUM_SHARED = 3
top_ks = st.integers(1, NUM_ROUTED)
tokens = st.tuples(st.integers(1, 3), st.integers(1, 5))
seeds = st.integers(0, 2**32 - 1)


@cache
def _session(top_k: int, *, staged: bool = False, gate_mode: str = "weighted"):
    size = {"routed": NUM_ROUTED, "shared": NUM_SHARED, "stage": 2}
    present = {"routed": True, "shared": gate_mode == "weighted", "stage": staged}
    inputs = [
        TensorType("float32", ("batch", "seq", size[name])) if present[name] else None
        for name in size
    ]
    attributes = {"top_k": top_k, "num_shared_heads": NUM_SHARED, "gate_mode": gate_mode}
    model = single_node_model("MoHRouter", inputs, attributes)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _logits(tokens: tuple[int, int], seed: int) -> dict[str, np.ndarray]:
    """Distinct multiples of 1/16: float32 holds them exactly, also plus a small integer."""
    rng = np.random.default_rng(seed)
    sizes = {"routed_logits": NUM_ROUTED, "shared_logits": NUM_SHARED, "stage_logits": 2}
    return {
        name: rng.permuted(np.ones((*tokens, 1)) * np.arange(-16, 16), axis=-1)[..., :size].astype(
            np.float32
        )
        / 16
        for name, size in sizes.items()
    }


def _gates(session: ort.InferenceSession, logits: dict[str, np.ndarray]):
    """Return shared and routed gates."""
    names = {given.name for given in session.get_inputs()}
    gates = session.run(None, {name: logits[name] for name in names})[0]
    return gates[..., :NUM_SHARED], gates[..., NUM_SHARED:]


@nightly
@given(top_ks, tokens, seeds, st.booleans())
def test_exactly_top_k_routed_gates_are_open_for_each_token(top_k, tokens, seed, staged):
    shared, routed = _gates(_session(top_k, staged=staged), _logits(tokens, seed))
    assert np.all(np.count_nonzero(routed, axis=-1) == top_k)
    assert np.all(shared > 0)


@given(top_ks, tokens, seeds)
def test_open_heads_are_those_with_the_largest_logits(top_k, tokens, seed):
    logits = _logits(tokens, seed)
    _, routed = _gates(_session(top_k), logits)
    ranks = np.argsort(np.argsort(-logits["routed_logits"], axis=-1), axis=-1)
    np.testing.assert_array_equal(routed != 0, ranks < top_k)


@given(top_ks, tokens, seeds)
def test_gates_sum_to_the_number_of_open_heads(top_k, tokens, seed):
    shared, routed = _gates(_session(top_k), _logits(tokens, seed))
    np.testing.assert_allclose(routed.sum(-1), top_k, rtol=1e-5)
    np.testing.assert_allclose(shared.sum(-1), NUM_SHARED, rtol=1e-5)


@given(top_ks, tokens, seeds)
def test_stage_weights_of_shared_and_routed_heads_sum_to_two(top_k, tokens, seed):
    shared, routed = _gates(_session(top_k, staged=True), _logits(tokens, seed))
    np.testing.assert_allclose(shared.sum(-1) / NUM_SHARED + routed.sum(-1) / top_k, 2, rtol=1e-5)


@given(top_ks, tokens, seeds, st.integers(-8, 8))
def test_adding_a_constant_to_all_logits_changes_nothing(top_k, tokens, seed, constant):
    logits = _logits(tokens, seed)
    session = _session(top_k, staged=True)
    shifted = {name: array + np.float32(constant) for name, array in logits.items()}
    for before, after in zip(_gates(session, logits), _gates(session, shifted), strict=True):
        np.testing.assert_array_equal(before, after)


@given(top_ks, tokens, seeds)
def test_permuting_routed_heads_permutes_their_gates(top_k, tokens, seed):
    logits = _logits(tokens, seed)
    order = np.random.default_rng(seed).permutation(NUM_ROUTED)
    permuted = logits | {"routed_logits": logits["routed_logits"][..., order]}
    session = _session(top_k)
    np.testing.assert_allclose(
        _gates(session, permuted)[1], _gates(session, logits)[1][..., order], rtol=1e-5
    )


@given(top_ks, tokens, seeds)
def test_mask_mode_opens_the_same_heads_with_gate_one(top_k, tokens, seed):
    logits = _logits(tokens, seed)
    shared, routed = _gates(_session(top_k, gate_mode="mask"), logits)
    np.testing.assert_array_equal(routed, _gates(_session(top_k), logits)[1] != 0)
    assert np.all(shared == 1)


@pytest.mark.parametrize("top_k", range(1, NUM_ROUTED + 1))
def test_router_breaks_ties_toward_lower_head_index(top_k: int):
    logits = {name: np.zeros_like(a) for name, a in _logits((1, 2), 0).items()}
    _, routed = _gates(_session(top_k), logits)
    np.testing.assert_array_equal(routed != 0, [[np.arange(NUM_ROUTED) < top_k] * 2])


def test_variant_without_logits_is_refused():
    with pytest.raises(ExportError, match="no function body without logits"):
        function_body(RouterVariant("none", "ones", False), opset=18)
