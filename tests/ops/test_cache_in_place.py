"""Prompt, chunk and steps in one buffer, past and present, give what all tokens at once give."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime import OrtValue
from packaging import version

from moh_deploy.ops import MOH_ATTENTION
from tests.ops.cache_in_place import (
    ATTRIBUTES,
    CACHES,
    HEAD_DIM,
    NUM_HEADS,
    NUM_KV_HEADS,
    ROOM,
    cache_model,
)
from tests.plugins.kernels import kernels_of

pytestmark = pytest.mark.skipif(
    version.parse(ort.__version__) < version.parse("1.25"),
    reason="this ONNX Runtime may have no TensorScatter",
)

BATCH, TOKENS = 2, 20
CALLS = (7, 1, 9, 1, 1)  # tokens of each call; the second sequence begins with the second call


def _function_bodies(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _kernels(model: onnx.ModelProto) -> ort.InferenceSession:
    return kernels_of("baseline").session(model)


def _tokens(seed: int) -> dict[str, np.ndarray]:
    """What the layer reads of all tokens."""
    rng = np.random.default_rng(seed)
    arrays = {
        "Q": rng.standard_normal((BATCH, NUM_HEADS, TOKENS, HEAD_DIM)),
        "key": rng.standard_normal((BATCH, NUM_KV_HEADS, TOKENS, HEAD_DIM)),
        "value": rng.standard_normal((BATCH, NUM_KV_HEADS, TOKENS, HEAD_DIM)),
        "gates": rng.random((BATCH, TOKENS, NUM_HEADS)).round(),
    }
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _cut(array: np.ndarray, begins: list[int], count: int) -> np.ndarray:
    """`count` tokens of each sequence; gates have their tokens on the second axis."""
    axis = 0 if array.ndim == 3 else 1
    return np.stack(
        [
            sequence.take(range(begin, begin + count), axis)
            for sequence, begin in zip(array, begins, strict=True)
        ]
    )


def _run(session: ort.InferenceSession, feeds: dict, caches: dict[str, OrtValue]) -> np.ndarray:
    """Run with each cache as past and as present."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    for past, present in CACHES.items():
        binding.bind_ortvalue_input(past, caches[past])
        binding.bind_ortvalue_output(present, caches[past])
    binding.bind_output("Y")
    session.run_with_iobinding(binding)
    return binding.copy_outputs_to_cpu()[-1]


@pytest.mark.parametrize("open_session", [_function_bodies, _kernels])
def test_a_shared_buffer_gives_what_all_tokens_at_once_give(open_session):
    session, tokens = open_session(cache_model()), _tokens(0)
    expected = MOH_ATTENTION.reference(
        [tokens[name] for name in ("Q", "key", "value", "gates")], ATTRIBUTES
    )[0]
    shape = (BATCH, NUM_KV_HEADS, ROOM, HEAD_DIM)
    caches = {
        name: OrtValue.ortvalue_from_numpy(np.full(shape, np.nan, np.float32)) for name in CACHES
    }
    begins = [0, 0]
    for call, count in enumerate(CALLS):
        feeds = {name: _cut(array, begins, count) for name, array in tokens.items()}
        feeds["write_indices"] = np.array(begins)
        output = _run(session, feeds, caches)
        np.testing.assert_allclose(
            output, _cut(expected, begins, count), rtol=1e-4, atol=1e-5, err_msg=f"call {call}"
        )
        # What the second sequence wrote in the first call is written over in the next one.
        begins = [begins[0] + count, begins[1] + (count if call else 0)]
    assert begins == [19, 12]
    np.testing.assert_array_equal(caches["past_key"].numpy()[0, :, :19], tokens["key"][0, :, :19])
