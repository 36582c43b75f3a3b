"""Invariants of MoHTokenConv, on the function body as ONNX Runtime runs it."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime as ort

from moh_deploy.ops.onnx_schema import single_node_model
from moh_deploy.ops.spec import TensorType

HEIGHT, WIDTH, CHANNELS = 5, 7, 6


@cache
def _session(**attributes: object) -> ort.InferenceSession:
    features = CHANNELS * (2 if attributes.get("gated") else 1)
    inputs = [
        TensorType("float32", ("batch", HEIGHT * WIDTH, features)),
        TensorType("float32", (CHANNELS, 1, 3, 3)),
    ]
    image = {"channels": CHANNELS, "height": HEIGHT, "width": WIDTH}
    model = single_node_model("MoHTokenConv", inputs, {**image, **attributes})
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _run(image: np.ndarray, weight: np.ndarray, **attributes: object) -> np.ndarray:
    """Image and output [B, H, W, C]."""
    tokens = image.reshape(len(image), HEIGHT * WIDTH, image.shape[3])
    (output,) = _session(**attributes).run(None, {"X": tokens, "W": weight})
    return output.reshape(len(image), HEIGHT, WIDTH, CHANNELS)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def test_flipping_image_and_kernel_flips_the_output():
    image, weight = _normal(2, HEIGHT, WIDTH, CHANNELS), _normal(CHANNELS, 1, 3, 3)
    flipped = _run(image[:, ::-1, ::-1].copy(), weight[..., ::-1, ::-1].copy())
    np.testing.assert_allclose(flipped[:, ::-1, ::-1], _run(image, weight), atol=1e-6)


def test_kernel_of_one_tap_moves_the_image():
    image, weight = _normal(2, HEIGHT, WIDTH, CHANNELS), np.zeros((CHANNELS, 1, 3, 3), np.float32)
    weight[:, 0, 0, 2] = 1
    moved = np.zeros_like(image)
    moved[:, 1:, :-1] = image[:, :-1, 1:]
    np.testing.assert_array_equal(_run(image, weight), moved)


def test_images_of_a_batch_do_not_mix():
    image, weight = _normal(3, HEIGHT, WIDTH, CHANNELS), _normal(CHANNELS, 1, 3, 3)
    alone = np.concatenate([_run(image[i : i + 1], weight) for i in range(3)])
    np.testing.assert_array_equal(alone, _run(image, weight))


def test_empty_batch_is_empty():
    weight = _normal(CHANNELS, 1, 3, 3)
    assert _run(_normal(0, HEIGHT, WIDTH, 2 * CHANNELS), weight, gated=1).shape[0] == 0
